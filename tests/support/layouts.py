"""Small made-up samples of the layouts that imports know."""
# ruff: noqa: E501  lines of sample files

from __future__ import annotations

import gzip
from pathlib import Path

Files = dict[str, str | bytes]
# name of a sample -> its kind, its files, items with texts, sequences of users
SAMPLES: dict[str, tuple[str, Files, dict[str, str | None], dict[str, list[str]]]] = {
    "100k": (
        "movielens",
        {
            "u.data": "7\t1\t5\t30\n7\t02\t3\t20\n8\t1\t4\t10\n",
            "u.item": "\n".join(
                "|".join([one, title, "01-Jan-1995", "", "http://x", *["0"] * 19])
                for one, title in (("1", 'Toy "Story" (1995)'), ("02", "Am\u00e9lie"))
            ).encode("latin-1"),
        },
        {"1": 'Toy "Story" (1995)', "02": "Am\u00e9lie"},
        {"7": ["02", "1"], "8": ["1"]},
    ),
    "1m": (
        "movielens",
        {"ratings.dat": "7::1::5::30\n7::2::3::20\n", "movies.dat": "1::A, b::Drama|War\n2::C::War\n"},
        {"1": "A, b. Drama|War", "2": "C. War"},
        {"7": ["2", "1"]},
    ),
    "latest": (
        "movielens",
        {
            "ratings.csv": "userId,movieId,rating,timestamp\r\n7,1,2.5,30\r\n",
            "movies.csv": 'movieId,title,genres\r\n1,"Dog, The",Drama\r\n',
        },
        {"1": "Dog, The. Drama"},
        {"7": ["1"]},
    ),
    "hm": (
        "hm",
        {
            "transactions_train.csv": "t_dat,customer_id,article_id,price,sales_channel_id\n2020-09-02,u,0108,0.1,2\n"
            "2020-09-01,u,0109,0.1,2\n",
            "articles.csv": "article_id,prod_name,product_type_name,colour_group_name,detail_desc\n0108,Top,Vest,Red,\n"
            '0109,Hat,Hat,Blue,"Soft, warm"\n',
        },
        {"0108": "Top. Vest. Red", "0109": "Hat. Hat. Blue. Soft, warm"},
        {"u": ["0109", "0108"]},
    ),
    "amazon 2014": (
        "amazon",
        {
            "reviews_Toys_5.json.gz": gzip.compress(
                b'{"reviewerID": "u", "asin": "01", "overall": 5.0, "unixReviewTime": 9, "reviewText": "x"}\n'
            ),
            "meta_Toys.json.gz": gzip.compress(b"{'asin': '01', 'title': \"Bear's\", 'categories': [['Toys']]}\n"),
        },
        {"01": "Bear's"},
        {"u": ["01"]},
    ),
    "amazon 2018": (
        "amazon",
        {
            "Toys_5.json": '{"reviewerID": "u", "asin": "01", "overall": 5.0, "unixReviewTime": 9}\n',
            "meta_Toys.json": '{"asin": "01", "title": "Bear", "brand": "Acme", "description": ["a", "b"]}\n'
            '{"asin": "01", "title": "Bear again", "brand": "", "description": []}\n',
        },
        {"01": "Bear. Acme"},
        {"u": ["01"]},
    ),
    "amazon 2018, ratings": (
        "amazon",
        {
            "Toys.csv": "01,u,5.0,9\n02,u,5.0,3\n",
            "meta_Toys.json": '{"asin": "01", "title": "Bear", "brand": "Acme"}\n',
        },
        {"01": "Bear. Acme"},
        {"u": ["01"]},
    ),
    "amazon 2014, ratings": (
        "amazon",
        {"ratings_Toys.csv": "u,01,5.0,9\n", "meta_Toys.json": "{'asin': '01', 'title': 'Bear', 'brand': 'Acme'}\n"},
        {"01": "Bear. Acme"},
        {"u": ["01"]},
    ),
    "amazon 2023": (
        "amazon",
        {
            "Toys.jsonl": '{"rating": 5.0, "parent_asin": "01", "asin": "09", "user_id": "u", "timestamp": 1500000000000}\n',
            "meta_Toys.jsonl": '{"title": "Bear", "store": "Acme", "parent_asin": "01", "features": ["soft"]}\n',
        },
        {"01": "Bear. Acme"},
        {"u": ["01"]},
    ),
    "mind": (
        "mind",
        {
            "behaviors.tsv": "1\tu\t11/12/2019 2:14:46 PM\tN3 N1\tN2-1 N3-0\n2\tu\t11/12/2019 9:00:00 AM\tN3 N1\tN1-1 N2-1\n"
            "3\tv\t11/13/2019 9:00:00 AM\t\tN3-0 N1-1\n",
            "news.tsv": "".join(
                f'{one}\tnews\tlocal\t"{one} title\tabstract\thttps://x\t[]\t[]\n' for one in ("N1", "N2", "N3")
            ),
        },
        {"N1": '"N1 title', "N2": '"N2 title', "N3": '"N3 title'},
        {"u": ["N3", "N1", "N1", "N2", "N2"], "v": ["N1"]},
    ),
    "morec": (
        "morec",
        {"am_users.tsv": "u\tv1 v2 v1\n", "am_items.tsv": "v1\tred &amp; new\r\nv2\tblue\r\n"},
        {"v1": "red & new", "v2": "blue"},
        {"u": ["v1", "v2", "v1"]},
    ),
    "morec with abstracts": (
        "morec",
        {"mind_60w_users.tsv": "u\t1 2\n", "mind_60w_items.tsv": "1\tred\tlong\n2\tblue\t\n"},
        {"1": "red", "2": "blue"},
        {"u": ["1", "2"]},
    ),
    "ninerec with times": (
        "ninerec",
        {
            "QB_item.csv": 'v1,"\u7ea2","red, new"\nv2,\u84dd,blue\n',
            "QB_pair.csv": "v2,u1,30\nv1,u1,20\n",
            "QB_behaviour.tsv": "u1\tv2 v1\n",
        },
        {"v1": "red, new", "v2": "blue"},
        {"u1": ["v1", "v2"]},
    ),
    "ninerec": (
        "ninerec",
        {"QB_item.csv": "v1,\u7ea2,red\nv2,\u84dd,blue\n", "QB_behaviour.tsv": "u1\tv2 v1\n"},
        {"v1": "red", "v2": "blue"},
        {"u1": ["v2", "v1"]},
    ),
    "microlens": (
        "microlens",
        {
            "MicroLens-50k_titles.csv": 'item,title\n1,red, new\n2,"blue, ""old"""\n',
            "MicroLens-50k_pairs.csv": "user,item,timestamp\n7,2,30\n7,1,20\n",
        },
        {"1": "red, new", "2": 'blue, "old"'},
        {"7": ["1", "2"]},
    ),
    "microlens without times": (
        "microlens",
        {"MicroLens-100k_title_en.csv": "1,red\n2,blue\n", "MicroLens-100k_pairs.tsv": "7\t2 1\n"},
        {"1": "red", "2": "blue"},
        {"7": ["2", "1"]},
    ),
    "pixelrec": (
        "pixelrec",
        {
            "interactions/Pixel200K.csv": "item_id,user_id,timestamp\ni2,7,30\ni1,7,20\n",
            "item_info/Pixel200K.csv": "item_id,view_number,title,tag,description\ni1,9,red,t,\ni2,8,blue,t,d\n",
        },
        {"i1": "red", "i2": "blue"},
        {"7": ["i1", "i2"]},
    ),
    "recbole": (
        "recbole",
        {
            "shop.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n7\t02\t5\t30\n7\t1\t4\t20\n",
            "shop.item": "item_id:token\ttitle:token_seq\n1\tred shirt\n02\tblue\n",
        },
        {"1": "red shirt", "02": "blue"},
        {"7": ["1", "02"]},
    ),
    "unisrec": (
        "recbole",
        {
            "S.train.inter": "user_id:token\titem_id_list:token_seq\titem_id:token\n7\t2\t1\n",
            "S.test.inter": "user_id:token\titem_id_list:token_seq\titem_id:token\n7\t2 1 3\t2\n",
            "S.text": "item_id:token\ttext:token_seq\n1\tred\n2\tblue\n3\tgrey\n",
        },
        {"1": "red", "2": "blue", "3": "grey"},
        {"7": ["2", "1", "3", "2"]},
    ),
    "steam": (
        "steam",
        {
            "steam_reviews.json": "{u'username': u'u', u'product_id': u'10', u'date': u'2017-12-17', u'text': u'it\\'s'}\n",
            "steam_games.json": "{u'id': u'10', u'app_name': u'Chess', u'genres': [u'Board', u'Old'], u'tags': [u'x']}\n",
        },
        {"10": "Chess. Board Old. x"},
        {"u": ["10"]},
    ),
    "yelp": (
        "yelp",
        {
            "yelp_academic_dataset_review.json": '{"user_id": "u", "business_id": "b", "stars": 4.0, "date": "2018-07-07 '
            '22:09:11"}\n',
            "yelp_academic_dataset_business.json": '{"business_id": "b", "name": "Caf\u00e9", "categories": "Food, Bar", '
            '"city": "Rome", "attributes": {"WiFi": "no"}}\n',
        },
        {"b": "Caf\u00e9. Food, Bar. Rome"},
        {"u": ["b"]},
    ),
    "kuairec": (
        "kuairec",
        {
            "data/big_matrix.csv": "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"
            "7,2,1,1,x,20200705,1593878903.438,2.5\n7,1,1,1,x,20200705,1593878902.5,0.5\n",
            "data/kuairec_caption_category.csv": "video_id,manual_cover_text,caption,topic_tag\n1,UNKNOWN,red,[x]\n2,UNKNOWN,"
            "blue,\n",
        },
        {"1": "red. [x]", "2": "blue"},
        {"7": ["1", "2"]},
    ),
}


def written(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder
