"""Progress in lines: by a clock that the test turns."""

from __future__ import annotations

from tasks.progress import Lines, artifact_key, step_of


class Watch:
    def __init__(self) -> None:
        self.now = 100.0
        self.said: list[str] = []
        self.lines = Lines(self.said.append, lambda: self.now)

    def after(self, seconds: float) -> None:
        """Let time pass as the reminding thread does, second by second."""
        for _ in range(int(seconds)):
            self.now += 1.0
            self.lines.remind(self.now)


def test_a_step_says_when_it_begins_how_far_it_is_and_when_it_ends() -> None:
    watch = Watch()
    watch.lines.show("Extract", 0, 1000, "tokens")
    assert watch.said == ["[    0 s] Extract: 1,000 tokens"]
    watch.after(10)
    watch.lines.show("Extract", 250, 1000, "tokens")
    assert len(watch.said) == 1
    watch.after(10)
    assert watch.said[1] == "[   20 s] Extract: 250 of 1,000 tokens, 60 s left"
    watch.after(180)
    watch.lines.show("Extract", 1000, 1000, "tokens")
    assert watch.said[-1] == "[3 min 20 s] Extract: done in 3 min 20 s"
    before = len(watch.said)
    watch.after(100)
    assert len(watch.said) == before


def test_there_is_never_half_a_minute_without_a_line_while_something_runs() -> None:
    watch = Watch()
    watch.lines.show("Find the model", 0, 0, "")
    watch.after(95)
    assert watch.said[-1] == "[   80 s] Find the model: 80 s so far"
    assert len(watch.said) == 1 + 95 // 20


def test_a_brief_step_has_one_line() -> None:
    watch = Watch()
    watch.lines.show("Publish", 0, 0, "")
    watch.after(1)
    watch.lines.show("Publish", 1, 1, "")
    watch.lines.show("Build", 3, 3, "documents")
    assert watch.said == ["[    0 s] Publish", "[    1 s] Build: 3 documents"]


def test_work_done_before_does_not_shorten_what_is_left() -> None:
    """A run that goes on at 900 of 1,000 has done nothing yet by itself."""
    watch = Watch()
    watch.lines.show("Extract", 900, 1000, "tokens")
    watch.after(20)
    assert watch.said[-1].endswith("900 of 1,000 tokens")
    watch.lines.show("Extract", 950, 1000, "tokens")
    watch.after(20)
    assert watch.said[-1].endswith("950 of 1,000 tokens, 40 s left")


def test_keys_tell_studies_models_revisions_and_parts_apart() -> None:
    steps = [("tiny", "main", None), ("tiny", "step1000", None), ("tiny", "main", (0, 2)), ("tiny", "main", (1, 2))]
    keys = [artifact_key("Extract text_features", study, step_of(*step)) for study in ("a", "b") for step in steps]
    assert len(set(keys)) == len(keys)
    assert keys[0] == "extract-text-features-a-tiny"
    assert keys[3] == "extract-text-features-a-tiny-part-1-of-2"
