"""Every notebook runs from top to bottom on a short run, and what is committed of it is small and names no machine."""

import json
import re
import sys

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from programs import FOLDER, QUICK, finished

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 300_000  # bytes
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|usr|opt|work|mnt|Users|private|var)/|[A-Z]:\\\\")

# By notebook, parameters that take seconds, {run} and {out} to be filled in, and the files that it must leave.
TINY = {
    "convergency": (
        "RUNS, OUT = {{'digits': {run!r}}}, {out!r}\nACCURACIES, LOSSES = [5, 95], [10**6]",
        ("convergence.csv", "convergence.png"),
    ),
    "bfa": (
        "RUN, OUT = {run!r}, {out!r}\nATTACKERS, FLIPS, K_TOP, ATTACKER_IMAGES = 1, 1, 2, 8",
        ("bfa.csv", "bfa.png", "bfa_images.png"),
    ),
    "teacher_behavior": (
        "RUN, OUT = {run!r}, {out!r}\nSYNTHETIC, ATTACKED, BINS = 24, 1, 5",
        ("teacher_behavior.csv", "teacher_images.png", "teacher_confidence.png", "teacher_reliability.png"),
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run with the attack, on the digits."""
    root = tmp_path_factory.mktemp("runs")
    finished([*QUICK, "--hl", "--p_width", "4", "--run_root", root])
    return root / FOLDER.replace("anew", "anew-hl")


def parameters(notebook):
    """Its one cell tagged so."""
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    return cell


@pytest.fixture
def this_interpreter(tmp_path, monkeypatch):
    """The kernel "python3" is the Python of this process, whatever kernels the machine knows."""
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "this", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_from_top_to_bottom(path, run, this_interpreter, tmp_path):
    assert path.stem in TINY, f"say in TINY how {path.name} is run in seconds"
    source, files = TINY[path.stem]
    notebook = nbformat.read(path, as_version=4)
    out = tmp_path / "out"
    parameters(notebook).source = source.format(run=str(run), out=str(out))
    where = {"metadata": {"path": str(path.parent)}}  # as it starts when opened there
    NotebookClient(notebook, kernel_name="python3", timeout=300, resources=where).execute()
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    assert not [output for cell in codes for output in cell.outputs if output.output_type == "error"]
    for name in files:
        content = (out / name).read_bytes()
        assert content.startswith(b"\x89PNG") if name.endswith(".png") else content.count(b"\n") > 3, name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_has_outputs_is_small_and_names_no_absolute_path(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    parameters(notebook)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs and not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert len(json.dumps(outputs)) < LARGEST
    for output in outputs:
        texts = [output.get("text", ""), *(v for kind, v in output.get("data", {}).items() if "image/" not in kind)]
        assert not [text for text in texts if ABSOLUTE.search(str(text)) or str(ROOT) in str(text)]


def test_every_notebook_of_the_table_is_there():
    assert {path.stem for path in NOTEBOOKS} >= set(TINY)
