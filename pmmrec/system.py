"""A loaded checkpoint, ready to encode items, recommend and be evaluated, in a notebook or from the command line."""
# N items of the catalogue, D width, L inputs of the user encoder.

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pmmrec.data.cache import silent
from pmmrec.data.contents import MAX_UNREADABLE, check_features
from pmmrec.data.domain import Domain
from pmmrec.data.histories import Histories
from pmmrec.data.items import ItemReader
from pmmrec.data.releases import made_by
from pmmrec.errors import DataError, MachineError, RecipeError
from pmmrec.evaluation.baselines import left_out
from pmmrec.evaluation.catalogue import evaluate_model
from pmmrec.evaluation.domain_paths import write_domain_paths
from pmmrec.evaluation.item_features import item_features
from pmmrec.evaluation.outcome import Outcome, baseline_columns, domain_outcome, rank_baselines, write_outcome
from pmmrec.evaluation.ranking import Seen, write_ranks
from pmmrec.evaluation.recommend import ListMaker
from pmmrec.evaluation.scan import Sizes
from pmmrec.evaluation.scenarios import Scenario, scenario_queries
from pmmrec.evaluation.share import Share
from pmmrec.evaluation.tuned_baselines import check_tunable
from pmmrec.faiss_library import faiss
from pmmrec.homes import CACHE, expanded
from pmmrec.models.build import scorer_with
from pmmrec.models.recommender import Recommender
from pmmrec.progress import bars, bars_or_lines
from pmmrec.serving.blending import NO_BLEND, AskedBlend, Blending
from pmmrec.serving.candidates import CandidateItems, EncodedItems, list_maker, weights_name
from pmmrec.serving.encoding import encode, features_read
from pmmrec.serving.export import Exported, refuse_without_keys, write_index
from pmmrec.serving.new_items import new_items_domain
from pmmrec.serving.ready import Ready, open_ready
from pmmrec.serving.score import Scored, ScoreJob, check_lists_out, check_out, chosen_users
from pmmrec.serving.search import Kind
from pmmrec.settings import PartConfig
from pmmrec.train.threads import threads_for
from pmmrec.zoo import files
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender, open_checkpoint, with_base

HUB = Path("hub")


class System:
    """A checkpoint in use. Items are encoded once for each domain and kept. `warn` is given each warning once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        cache: Path,
        device: torch.device,
        warn: Callable[[str], None],
        popularity: float | None = None,
        max_unreadable: float = MAX_UNREADABLE,
        tell: Callable[[str], None] = silent,
        blend: Blending = NO_BLEND,
    ) -> None:
        self.checkpoint, self.device, self._blend = checkpoint, device, blend
        self._warn, self._warned, self._tell = warn, set[str](), tell
        self._popularity, self._max_unreadable = popularity, max_unreadable
        self._cache = expanded(cache)
        self._recommender: Recommender | None = None
        self._loaded_for = ""
        self._encoded: dict[tuple[str, ...], EncodedItems] = {}
        self._current: EncodedItems | None = None
        self._maker: tuple[tuple[str, int, str], ListMaker] | None = None

    def __repr__(self) -> str:
        """Which checkpoint, what it is made of, and which catalogue `recommend` draws from."""
        parts = ", ".join(self.checkpoint.parts)
        width, where = self.checkpoint.model_config.width, self.checkpoint.folder
        chosen = "no catalogue yet"
        if self._current is not None:
            domain = self._current.domain
            chosen = f"catalogue {domain.name} of {domain.num_items:,} items"
        return f"<pmmrec.System {where}: {parts}; width {width}; on {self.device}; {chosen}>"

    def encode_items(self, domain: Domain | Path | str) -> EncodedItems:
        """Vectors of every item of a domain; `recommend` then draws from this catalogue."""
        self._current = self._encode(_opened(domain))
        return self._current

    def features(self, domain: Domain | Path | str, vectors: str = "fused") -> NDArray[np.float32]:
        """Vectors to store as a feature: fused or the cls vectors of a field `(N, D)`, or those of a backbone.

        NaN where there is none; see `pmmrec.evaluation.item_features`.
        """
        opened = _opened(domain)
        with threads_for(self.checkpoint.model_config), bars() as progress:
            encoder = self._model_for(opened).item_encoder
            return item_features(encoder, self._reader_for(opened), 0, vectors, self.device, progress)

    def recommend(self, history: Sequence[str], k: int = 10, *, seen: Seen = "exclude") -> list[tuple[str, float]]:
        """The best k items after `history` (item ids, oldest first) as (item id, score), from the encoded catalogue."""
        if self._current is None:
            raise RecipeError("recommend: no catalogue yet; call encode_items(domain) first")
        if not history:
            raise RecipeError("recommend: the history is empty; give one item id or more, oldest first")
        domain = self._current.domain
        texts = [item if isinstance(item, str) else None for item in history]  # 1 is no id, though "1" may be
        rows = domain.rows_of(texts)
        unknown = [item for item, row in zip(history, rows, strict=True) if row < 0]
        if unknown:
            raise DataError(
                f"recommend: {unknown[0]!r} is not an item of {domain.name}; ids are strings, exactly as imported"
            )
        best = next(self._maker_for(self._current, k, seen).lists(np.array([0, len(rows)]), rows))
        is_filled_K = best.is_filled_BK[0]
        items, scores = best.item_index_BK[0][is_filled_K].tolist(), best.score_BK[0][is_filled_K].tolist()
        return [(domain.item_ids[item].as_py(), score) for item, score in zip(items, scores, strict=True)]

    def evaluate(
        self,
        domain: Domain | Path | str,
        *,
        name: str,
        scenario: Scenario = "regular",
        seen: Seen = "exclude",
        out: Path | str | None = None,
        tuned_baselines: bool = False,
        split: PartConfig | None = None,
    ) -> Outcome:
        """Rank the targets of a scenario beside the baselines; with `out`, write metrics.json and ranks.parquet.

        `tuned_baselines`: also beside EASE and item-kNN with the settings that rank the validation targets best.
        `split`: in place of that of the checkpoint's recipe, for a domain that the checkpoint has not learned from.
        """
        if out is not None and expanded(Path(out)).exists():
            raise RecipeError(f"--out {out}: exists; choose another folder or remove it")
        opened = _opened(domain)
        used = self.checkpoint.split_of(opened, split)
        queries = scenario_queries(used, scenario)
        if tuned_baselines:
            check_tunable(used)
        model, reader = self._model_for(opened), self._reader_for(opened)
        asked = (model, reader, 0, used, queries.holdout, self.device, seen)
        vectors_ND = self._encode(opened, reader=reader).vectors_ND
        with threads_for(self.checkpoint.model_config), bars() as progress:
            blend = self._blend.of_split(model, reader, used, vectors_ND, seen)
            evaluation = evaluate_model(*asked, vectors_ND=vectors_ND, blend=blend, progress=progress)
        for warning in (left_out(used), used.left_out(queries.holdout)):
            if warning:
                self._warn(warning)
        baselines = rank_baselines(used, seen, queries.holdout, tuned=tuned_baselines)
        is_held_out, learned = queries.is_held_out_T, self.checkpoint.was_trained_on(opened.name, opened.fingerprint)
        found = domain_outcome(used, evaluation, baselines, is_held_out_T=is_held_out, learned_here=learned)
        blended = None if blend is None else blend.config.model_dump(mode="json")
        asked_of: dict[str, Any] = {"seen": seen, "scenario": scenario, "split": used.told, "blend": blended}
        outcome = Outcome(name=name, kind="evaluate", domains=(found,), **asked_of)
        if out is not None:
            with files.writing(Path(out), replace=False) as place:
                place_of = {} if queries.place_T is None else {"place": queries.place_T, "held_out": is_held_out}
                more = {**place_of, **baseline_columns(baselines)}
                write_ranks(place / "ranks.parquet", evaluation.ranks, opened.user_ids, opened.item_ids, more)
                write_domain_paths(place, [opened])
                write_outcome(place, outcome)
        return outcome

    def score(
        self,
        domain: Domain | Path | str,
        k: int,
        out: Path | str,
        *,
        seen: Seen = "exclude",
        users: Path | str | None = None,
        skip_unknown: bool = False,
        new_items: Path | str | None = None,
        new_images: Path | str | None = None,
        share: Share | None = None,
        escape_formulas: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> Scored:
        """Write the best k items of every user, or of some: user_id, rank, item_id, score.

        Sequences are streamed, so memory does not grow with the number of users.

        Args:
            domain: Whose users get lists of its items.
            k: Items for each user.
            out: A file to make, .csv, .jsonl or .parquet; where several processes share the work, a folder of .parquet.
            seen: Whether items of a user's history are candidates.
            users: A file with the ids of those who get a list; None: everybody.
            skip_unknown: Leave out users that the domain does not know; else they are an error.
            new_items: A table (item_id, text) of items that nobody has touched, candidates beside those of the domain.
            new_images: A folder of their pictures.
            share: Which part of the work is this process's.
            escape_formulas: Put a ' before ids in a csv that a spreadsheet would compute, such as =cmd().
            say: Called once a minute with a line that tells how far it has come; None: bars on a terminal.
        """
        share, place, blend = share or Share(), expanded(Path(out)), self._blend.given("score")
        check_lists_out(place, share.count, escapes=escape_formulas)
        if new_images is not None and new_items is None:
            raise RecipeError("--new-images: has no effect without --new-items; leave it out")
        opened = _opened(domain, streamed=True)
        histories = Histories(opened)
        named = None if users is None else expanded(Path(users))
        chosen = chosen_users(histories, named, self._warn, skip_unknown=skip_unknown)
        config, where = self.checkpoint.model_config, self._cache
        with new_items_domain(config, new_items, new_images, opened, cache=where, warn=self._warn, say=say) as new:
            num_items = opened.num_items + (0 if new is None else new.num_items)
            if k > num_items:
                raise RecipeError(f"--top-k {k}: {opened.name} has only {num_items} items; choose k up to that")
            fresh = None if new is None else self._encode(new, share, say)
            self._encoded = {key: one for key, one in self._encoded.items() if one.domain is not new}
            ready = self._ready(opened) if new is None else None
            known = self._encode(opened, share, say) if ready is None else ready.items
            candidates = CandidateItems.of(known, fresh)
            items = f"{opened.fingerprint} {known.fingerprint} {'' if fresh is None else fresh.fingerprint}"
            weights = f"{weights_name(self.checkpoint)} {self._popularity} {blend or ''}"
            asked = f"{weights} {k} {seen} {made_by('pixels', 'vectors')}"
            name = hashlib.sha256(f"{items} {asked}".encode()).hexdigest()
            job = ScoreJob(place, histories, chosen, share=share, name=name, escapes=escape_formulas)
            model = self._model_for(opened) if ready is None else ready.model
            how: dict[str, Any] = {"blend": blend, "threads": torch.get_num_threads()}
            maker = list_maker(model, candidates, opened, k, seen, self.device, **how)
            with bars_or_lines(say) as progress:
                return job.run(maker, candidates.item_ids, progress)

    def index(
        self,
        domain: Domain | Path | str,
        out: Path | str,
        *,
        kind: Kind | None = None,
        k: int = 10,
        num_users: int = 1000,
        seed: int = 0,
        say: Callable[[str], None] | None = None,
    ) -> Exported:
        """Write item vectors, an index of them and the user encoder, for a service that has nothing else.

        Args:
            domain: Whose items are indexed.
            out: A folder to make; `pmmrec.serving.load_index` opens it.
            kind: Exact (`flat`), a graph (`hnsw`) or lists (`ivf`); None: what suits the number of items.
            k: Recall is measured on lists of so many items.
            num_users: Users of the domain, drawn at random, on whom it is measured.
            seed: Of the draw.
            say: Called once a minute with a line that tells how far it has come; None: bars on a terminal.
        """
        self._blend.refuse_index()
        place = expanded(Path(out))
        check_out(place)
        faiss()
        opened = _opened(domain, streamed=True)
        model = self._model_for(opened)
        refuse_without_keys(self.checkpoint, model)
        encoded, histories = self._encode(opened, say=say), Histories(opened)
        return write_index(
            place, self.checkpoint, model, encoded, histories, kind=kind, k=k, num_users=num_users, seed=seed
        )

    def _ready(self, domain: Domain) -> Ready | None:
        """The catalogue of a domain without its item encoder, where all of its vectors are kept."""
        known = None if self._recommender is not None else open_ready(self.checkpoint, domain, self._cache, self.device)
        if known is None or np.mean(~known.items.contents.is_readable_N) > self._max_unreadable:
            return None
        if self._popularity is not None:
            known.model.scorer = scorer_with(self.checkpoint.model_config, self._popularity)
        for warning in known.warnings:
            self._warn(warning)
        self._tell(f"{domain.name}: {known.counts()}")
        return known

    def _maker_for(self, encoded: EncodedItems, k: int, seen: Seen) -> ListMaker:
        """What makes lists one at a time; the last one is kept."""
        asked = (encoded.domain.fingerprint, k, seen)
        if self._maker is None or self._maker[0] != asked:
            model, sizes = self._model_for(encoded.domain), dataclasses.replace(Sizes.on(self.device), users=1)
            blend = self._blend.given("recommend")
            made = list_maker(model, encoded, encoded.domain, k, seen, self.device, blend, sizes=sizes)
            self._maker = (asked, made)
        return self._maker[1]

    def _encode(
        self,
        domain: Domain,
        share: Share | None = None,
        say: Callable[[str], None] | None = None,
        reader: ItemReader | None = None,
    ) -> EncodedItems:
        model = self._model_for(domain)
        known = (domain.fingerprint, *features_read(domain, model.item_encoder.reads))
        if known not in self._encoded:
            reader = reader or self._reader_for(domain, say)
            with bars_or_lines(say) as progress, threads_for(self.checkpoint.model_config):
                self._encoded[known] = encode(
                    self.checkpoint,
                    model,
                    reader,
                    domain,
                    cache=self._cache,
                    device=self.device,
                    share=share,
                    must_keep=share is not None,
                    progress=progress,
                    say=self._warn,
                    tell=self._tell,
                )
        return self._encoded[known]

    def _model_for(self, domain: Domain) -> Recommender:
        # A model that knows items or users by id serves one domain only: loading it for another is refused there.
        is_other = self._loaded_for != domain.fingerprint
        if self._recommender is None or (self._recommender.knows_ids and is_other):
            recommender = load_recommender(self.checkpoint, [domain.catalogue], [self.checkpoint.graph_of(domain)])
            if self._popularity is not None:
                recommender.scorer = scorer_with(self.checkpoint.model_config, self._popularity)
            self._recommender = recommender.to(self.device)
            self._loaded_for = domain.fingerprint
        return self._recommender

    def _reader_for(self, domain: Domain, say: Callable[[str], None] | None = None) -> ItemReader:
        encoder = self._model_for(domain).item_encoder
        check_features(domain, encoder.reads)
        with bars_or_lines(say) as progress:
            reader = ItemReader([domain], encoder.reads, self._cache, progress, self._max_unreadable, self._warn)
        for warning in reader.warnings:
            if warning not in self._warned:
                self._warn(warning)
                self._warned.add(warning)
        return reader


def load(
    checkpoint: str | Path,
    *,
    hub: Path | str = HUB,
    cache: Path | str | None = None,
    device: str | None = None,
    warn: Callable[[str], None] = warnings.warn,
    popularity: float | None = None,
    max_unreadable: float = MAX_UNREADABLE,
    base: str | None = None,
    tell: Callable[[str], None] = silent,
    blend: AskedBlend = None,
) -> System:
    """Open a checkpoint wherever it is. Weights are read, and fetched from another machine, at first use.

    Args:
        checkpoint: A folder, a name in `hub`, a URL such as `s3://bucket/name`, or `hf://user/name@revision`.
        hub: The folder hub in which names are looked up.
        cache: Where tokens and pixels are kept between runs.
        device: Such as "cuda" or "cpu"; None takes a GPU where there is one.
        warn: Called with each warning.
        popularity: Weight of popularity in the score; None: the checkpoint's. 0 looks at no interaction but the user's.
        max_unreadable: Share of a domain's items that may lack all that the model reads.
        base: For a checkpoint of adapters, the one they stand on, by folder or name; None: where it was in training,
            beside the adapters, or in `hub`.
        tell: Called with a line that counts the items that were encoded, and those whose vectors were kept.
        blend: What co-occurrence and popularity add to the score, in place of the checkpoint's popularity; "auto":
            `evaluate` chooses the weights by the validation targets.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise RecipeError(f"device {device!r}: torch knows no such device; give cpu, cuda or cuda:1") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise MachineError(f"device {device!r}: torch finds no GPU here; give cpu, or leave it out")
    opened = open_checkpoint(str(checkpoint), Path(hub), parts=(), warn=warn)
    blending = Blending(blend)
    popularity = blending.popularity(opened.model_config, popularity)
    places = with_base(opened, base, Path(hub)), Path(cache or CACHE)
    return System(*places, chosen, warn, popularity, max_unreadable, tell, blending)


def _opened(domain: Domain | Path | str, *, streamed: bool = False) -> Domain:
    return domain if isinstance(domain, Domain) else Domain.open(Path(domain), streamed=streamed)
