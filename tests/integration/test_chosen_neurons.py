"""A study of some neurons only: every table names the model's neurons, and no check finds anything missing."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

CHOSEN = [(0, 9), (2, 3), (2, 11), (2, 40), (2, 63)]


@pytest.mark.slow
def test_a_study_of_chosen_neurons(tmp_path: Path, cli, tiny_profile: Path) -> None:
    (tmp_path / "chosen.csv").write_text(
        "layer,neuron\n" + "".join(f"{layer},{neuron}\n" for layer, neuron in CHOSEN), encoding="utf-8"
    )
    profile = tmp_path / "chosen.toml"
    text = tiny_profile.read_text(encoding="utf-8").replace("[extraction]", '[extraction]\nneurons = "chosen.csv"')
    profile.write_text(text[: text.rindex("[[collections]]")], encoding="utf-8")
    data = tmp_path / "data"
    done = cli("study", "--profile", str(profile), data=data)
    assert done.returncode == 0, done.stdout + done.stderr
    with duckdb.connect(str(data / "results.duckdb"), read_only=True) as connection:
        scored = connection.execute("select distinct layer, neuron from neuron_scores order by all").fetchall()
        assert scored == CHOSEN
        supports = connection.execute(
            "select distinct layer, neuron from probe_supports join probe_fits using (run_id, fit_id, layer) "
            "where variant <> 'random_rotation' order by all"
        ).fetchall()
        assert len(supports) > 0
        assert set(supports) <= set(CHOSEN)
        best = connection.execute("select distinct layer, neuron from best_neuron_per_feature").fetchall()
        assert set(best) <= set(CHOSEN)
        failed = connection.execute(
            "select name, violations from validation_checks where not passed and severity = 'error'"
        ).fetchall()
        assert failed == []
