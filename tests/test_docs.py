"""What the documentation says: links lead somewhere, commands are ones that the programs take."""

import itertools
import re
import shlex

import pytest
from conftest import ROOT

import main
import train_scratch
from datafree.cli.parser import Parser

PAGES = sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page):
    """The text without its code."""
    text = re.sub(r"^ *```.*?^ *```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*\([^`\n]*`", "", text)


def anchors(page):
    """What GitHub calls the headings of a page."""
    titles = re.findall(r"^#+ (.*)", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page):
    """The lines of shell in blocks of code, continued ones joined, comments, redirections and "&" left out."""
    text = "".join(re.findall(r"^ *```bash\n(.*?)^ *```", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S))
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            end = next((at for at, word in enumerate(words) if word.startswith((">", "&"))), len(words))
            yield words[:end]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_files_and_headings_that_there_are(page):
    for target in LINK.findall(prose(page)):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            file = (ROOT / page).parent / path if path else ROOT / page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file.resolve().relative_to(ROOT)), target


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_name_programs_that_there_are_and_flags_that_they_take(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for program, *words in commands(page):
        if program == "torchrun":
            program, words = "python", list(itertools.dropwhile(lambda word: word.startswith("-"), words))
        if program not in ("python", "bash"):
            assert program in ("source", "pip", "OMP_NUM_THREADS=1") or "=" in program, program
            continue
        file, *flags = words
        assert (ROOT / file).is_file(), file
        if file == "main.py" and "--resume" not in flags:
            main.command_line(flags)
        elif file == "train_scratch.py":
            Parser("", "", train_scratch.CONFIGS).resolve(flags)
        elif file.startswith("scripts/"):
            sources = [(ROOT / file).with_suffix(kind) for kind in (".sh", ".py")]
            text = "".join(source.read_text() for source in sources if source.exists())
            assert all(flag in text for flag in flags if flag.startswith("--")), flags


def test_the_readme_has_at_most_150_lines():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
