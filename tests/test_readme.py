"""The examples of the README run as they stand there, on the sample data."""

import doctest
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_examples_of_the_readme_run(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "sample_data", tmp_path / "sample_data")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text("utf-8")
    examples = doctest.DocTestParser().get_doctest(text, {}, "README.md", "README.md", 0)
    assert len(examples.examples) >= 9
    told = []
    failed, _ = doctest.DocTestRunner().run(examples, out=told.append)
    assert not failed, "".join(told)
    assert (tmp_path / "segmentation.nii.gz").is_file()


def test_examples_of_the_readme_are_three_lines_each():
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"```pycon\n(.*?)```", text, re.DOTALL)
    assert [block.count(">>>") for block in blocks] == [1, 3, 3, 2]
