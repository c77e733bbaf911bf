"""The runner: directives, parameters, the failing cell, the time limit, a kernel that dies, and sources left alone."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from nlp_portfolio.course import runner
from nlp_portfolio.course.runner import Report, course_notebooks, failure_text, run_notebook, run_notebooks, skipped

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def write(file: Path, *cells, metadata: dict = KERNEL) -> Path:
    "A notebook of these cells; a string is a code cell, and one that begins with profile is tagged `parameters`."
    made = [new_code_cell(cell, metadata={"tags": ["parameters"]} if cell.startswith("profile") else {})
            if isinstance(cell, str) else cell for cell in cells]
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=made, metadata=metadata), file)
    return file


@pytest.mark.parametrize(("source", "wanted", "skips"), [
    ("1 + 1", (), False),
    ("#| eval: false\n1", (), True),
    ("# | eval:false", (), True),
    ("#|eval: False", (), True),
    ("1\n#| eval: false", (), True),
    ("#| eval: true", (), False),
    ("#| export\n1", (), False),
    ("#| notest", (), True),
    ("#| gpu\nx", (), True),
    ("#| gpu\nx", ("gpu",), False),
    ("#| slow\n#| gpu", ("gpu",), True),
    ("#| slowly", (), False),
    ("# eval: false in a comment", (), False),
    ("print('#| eval: false')", (), False),
    ("", (), False),
])
def test_directives(source, wanted, skips):
    assert skipped(source, wanted) is skips


def test_marking_keeps_other_tags_and_leaves_markdown_alone():
    nb = new_notebook(cells=[new_code_cell("#| eval: false", metadata={"tags": ["mine"]}), new_code_cell("1"),
                             new_markdown_cell("#| eval: false")])
    runner.mark_skipped(nb)
    assert [cell.metadata.get("tags") for cell in nb.cells] == [["mine", "skip-execution"], None, None]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    "One notebook that ran in profile smoke: its file, its text before, its report, its executed copy."
    file = write(tmp_path_factory.mktemp("nb") / "01_good.ipynb", "profile = None", "import os\n(profile, os.getcwd())",
                 "#| eval: false\nraise SystemError('never')", "#| gpu\nraise SystemError('never')",
                 new_code_cell("raise SystemError('never')", metadata={"tags": ["skip-execution"]}), new_markdown_cell("# text"),
                 "print('last')")
    before, output = file.read_bytes(), file.with_name("out.ipynb")
    report = run_notebook(file, "smoke", limit=60, output=output)
    return file, before, report, nbformat.read(output, as_version=4)


def test_report_of_a_notebook_that_ran(good):
    _, _, report, _ = good
    assert report.ok and (report.notebook, report.failed_cell, report.error) == ("01_good.ipynb", "", "")
    assert report.cells == 4  # the parameters, the injected ones, and two more; the skipped ones do not count
    assert 0 < report.seconds < 60 and report.peak_mb > 10


def test_profile_is_injected_and_the_folder_is_the_notebooks_own(good):
    file, _, _, ran = good
    (shown,) = [cell.outputs[0]["data"]["text/plain"] for cell in ran.cells if cell.source.startswith("import os")]
    assert shown == repr(("smoke", str(file.parent.resolve())))


def test_skipped_cells_did_not_run_and_the_last_one_did(good):
    ran = good[3]
    by_source = {cell.source: cell for cell in ran.cells if cell.cell_type == "code"}
    assert by_source["print('last')"].outputs[0]["text"] == "last\n"
    assert [cell.execution_count for source, cell in by_source.items() if "never" in source] == [None] * 3


def test_source_notebook_is_unchanged_and_nothing_is_left_beside_it(good):
    file, before, _, _ = good
    assert file.read_bytes() == before
    assert sorted(found.name for found in file.parent.iterdir()) == ["01_good.ipynb", "out.ipynb"]


def test_failing_cell_is_named_with_its_error(tmp_path):
    file = write(tmp_path / "02_bad.ipynb", "x = 1", "y = 'a very telling cell'\n1 / 0", "print('not reached')")
    before = file.read_bytes()
    report = run_notebook(file, "smoke", limit=60)
    assert not report.ok and report.failed_cell == "y = 'a very telling cell'\n1 / 0"
    assert report.error.startswith("ZeroDivisionError: division by zero") and "\x1b" not in report.error
    text = failure_text(report)
    assert text.startswith("02_bad.ipynb failed in the cell\n\n    y = 'a very telling cell'\n    1 / 0\n")
    assert "ZeroDivisionError: division by zero" in text and len(text.splitlines()) < 25
    assert file.read_bytes() == before


def test_kernel_that_dies_is_reported_and_the_next_notebook_runs(tmp_path, capsys):
    dies = write(tmp_path / "03_dies.ipynb", "import os\nos._exit(9)", "1")
    lives = write(tmp_path / "04_lives.ipynb", "1")
    seen = []
    table = run_notebooks([dies, lives], limit=60, on_report=seen.append)
    assert table["ok"].tolist() == [False, True] and [report.notebook for report in seen] == ["03_dies.ipynb", "04_lives.ipynb"]
    assert seen[0].error.startswith("DeadKernelError")


def test_cell_that_takes_too_long_is_stopped(tmp_path):
    report = run_notebook(write(tmp_path / "05_slow.ipynb", "import time\ntime.sleep(30)"), limit=1)
    assert not report.ok and report.seconds < 20
    assert "time.sleep(30)" in report.error + report.failed_cell


def test_limit_is_for_the_whole_notebook(tmp_path):
    file = write(tmp_path / "06_drips.ipynb", "import time", *["time.sleep(.6)"] * 3)
    assert not run_notebook(file, limit=1).ok


def test_notebook_without_a_kernel_in_its_metadata_runs(tmp_path):
    assert run_notebook(write(tmp_path / "07_bare.ipynb", "1", metadata={}), "smoke", limit=60).ok


def test_missing_notebook_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.ipynb"):
        run_notebook(tmp_path / "none.ipynb")


def test_file_that_is_no_notebook_names_itself(tmp_path):
    (tmp_path / "broken.ipynb").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="broken.ipynb"):
        run_notebook(tmp_path / "broken.ipynb")


def test_course_order_toolkit_first_and_checkpoints_left_out(tmp_path):
    for name in ("nbs/course/settings", "nbs/0_start/01_b", "nbs/0_start/00_a", "nbs/4_evaluation/16_c", "projects/1_x/project",
                 "nbs/0_start/.ipynb_checkpoints/00_a-checkpoint"):
        write(tmp_path / f"{name}.ipynb")
    assert [file.stem for file in course_notebooks(tmp_path)] == ["settings", "00_a", "01_b", "16_c", "project"]
    assert [file.stem for file in course_notebooks(tmp_path, lessons_only=True)] == ["00_a", "01_b", "16_c", "project"]


def test_failure_text_without_a_cell_still_says_what_happened():
    assert "DeadKernelError: Kernel died" in failure_text(Report("x.ipynb", 1, 1, 0, "", "DeadKernelError: Kernel died"))
