"""Sentiment, tweets and genre, from the VADER rating study.

Reference:
    Hutto and Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment Analysis
    of Social Media Text, ICWSM 2014.
"""

import html
import io
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lit_wsl.training.tasks.splits import link_near_duplicates, split_of
from lit_wsl.training.tasks.task import Row, Source, Split, TextTask

_SOURCE = Source(
    package="vaderSentiment",
    version="0.5",
    filename="vaderSentiment-0.5.zip",
    sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
)
_INNER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
_FILES = {
    "movie": "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    "product": "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
    "news": "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
    "tweet": "hutto_ICWSM_2014/tweets_GroundTruth.txt",
}
_SHARED_WORDS = 8
_MIN_GENRE_WORDS = 4


@dataclass(frozen=True)
class _Snippet:
    kind: str
    score: float
    text: str
    split: Split


def read_snippets(archive: Path) -> list[_Snippet]:
    """Every rated snippet of the four files, with the split of its document."""
    return _read_snippets(archive, archive.stat().st_mtime_ns)


@cache
def _read_snippets(archive: Path, _modified: int) -> list[_Snippet]:
    # The id is `document_sentence` in the reviews and editorials, a plain row number elsewhere.
    rows: list[tuple[str, str, float, str]] = []
    with zipfile.ZipFile(archive) as outer, tarfile.open(fileobj=io.BytesIO(outer.read(_INNER))) as inner:
        for kind, member in _FILES.items():
            for line in _member_text(inner, member).splitlines():
                identity, score, text = line.split("\t", maxsplit=2)
                group = f"{kind}:{identity.split('_')[0]}"
                rows.append((kind, group, float(score), " ".join(html.unescape(text).split())))
    groups = link_near_duplicates([row[3] for row in rows], [row[1] for row in rows], _SHARED_WORDS)
    return [
        _Snippet(kind, score, text, split_of(group)) for (kind, _, score, text), group in zip(rows, groups, strict=True)
    ]


def _member_text(archive: tarfile.TarFile, member: str) -> str:
    file = archive.extractfile(member)
    if file is None:
        raise KeyError(f"{member} is no file of the archive")
    return file.read().decode("utf-8-sig")


def _polar(archive: Path, kind: str, threshold: float) -> Iterator[Row]:
    for snippet in read_snippets(archive):
        if snippet.kind == kind and abs(snippet.score) >= threshold:
            yield Row(snippet.text, "positive" if snippet.score > 0 else "negative", snippet.split)


def _sentiment(archive: Path) -> Iterator[Row]:
    return _polar(archive, "movie", 0.6)


def _tweets(archive: Path) -> Iterator[Row]:
    return _polar(archive, "tweet", 0.4)


def _genre(archive: Path) -> Iterator[Row]:
    for snippet in read_snippets(archive):
        if len(snippet.text.split()) >= _MIN_GENRE_WORDS:
            yield Row(snippet.text, snippet.kind, snippet.split)


SENTIMENT = TextTask(
    name="sentiment",
    prompts={
        "negative": "It was a bad movie. I hated it.",
        "positive": "It was a great movie. I loved it.",
    },
    source=_SOURCE,
    extract=_sentiment,
)

TWEETS = TextTask(
    name="tweets",
    prompts={
        "negative": "this sucks, ugh, sad, hate",
        "positive": "this is awesome, yay, happy, love",
    },
    source=_SOURCE,
    extract=_tweets,
)

GENRE = TextTask(
    name="genre",
    prompts={
        "movie": "a review of a film, its story, actors and director",
        "product": "a customer review of a product such as a camera, player or phone",
        "news": "a newspaper editorial about politics, government and society",
        "tweet": "a short informal post on Twitter about my day",
    },
    source=_SOURCE,
    extract=_genre,
)
