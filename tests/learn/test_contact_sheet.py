"""The page of samples: answers as text, bounded in length and safe to show."""

from bifrons.learn import contact_sheet
from PIL import Image


def test_answers_stand_under_their_questions(tmp_path) -> None:
    questions = ["1 < 2?", "x" * 5000]
    contact_sheet.add_samples(tmp_path, 0, ["<b>yes</b>\x1b[2J", "é" * 5000], questions)
    contact_sheet.add_samples(tmp_path, 10, ["no", ""], questions)
    assert contact_sheet.sampled_steps(tmp_path) == [0, 10]
    page = (tmp_path / "samples.html").read_text(encoding="utf-8")
    assert "<p>&lt;b&gt;yes&lt;/b&gt;\\u001b[2J</p>" in page
    assert '<th scope="col">1 &lt; 2?</th>' in page
    assert page.count("é") == page.count("x" * 1000) * 1000 == 1000
    assert page.count("<p>") == 4
    assert "<img" not in page


def test_a_sample_cut_short_by_a_crash_is_not_one(tmp_path) -> None:
    assert contact_sheet.sampled_steps(tmp_path) == []
    contact_sheet.add_samples(tmp_path, 3, [Image.new("RGB", (4, 4))], ["a wall"])
    (tmp_path / "samples" / "step-4-0.png.part").write_bytes(b"")
    assert contact_sheet.sampled_steps(tmp_path) == [3]
    assert 'alt="a wall, step 3"' in (tmp_path / "samples.html").read_text(encoding="utf-8")
