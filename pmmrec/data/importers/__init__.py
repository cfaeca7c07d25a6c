"""Import the tables and pictures of users as domains."""
