"""A study over several hooks: one pass of the model, one run a hook, results that say which."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest


@pytest.mark.slow
def test_a_study_over_hooks(tmp_path: Path, cli, tiny_profile: Path) -> None:
    text = tiny_profile.read_text(encoding="utf-8")
    profile = tmp_path / "hooks.toml"
    profile.write_text(
        'hooks = ["post", "hook_resid_post"]\n' + text[: text.rindex("[[collections]]")],
        encoding="utf-8",
    )
    data = tmp_path / "data"
    done = cli("study", "--profile", str(profile), data=data)
    assert done.returncode == 0, done.stdout + done.stderr
    with duckdb.connect(str(data / "results.duckdb"), read_only=True) as connection:
        runs = connection.execute("select hook, n_neurons, layers from runs order by hook").fetchall()
        assert runs == [("hook_resid_post", 16, [0, 1, 2]), ("mlp.hook_post", 64, [0, 1, 2])]
        counts = connection.execute(
            "select hook, count(distinct (layer, neuron)) from neuron_scores join runs using (run_id) group by all "
            "order by all"
        ).fetchall()
        assert counts == [("hook_resid_post", 48), ("mlp.hook_post", 192)]
        failed = connection.execute(
            "select name, violations from validation_checks where not passed and severity = 'error'"
        ).fetchall()
        assert failed == []
    assert "hook_resid_post" in done.stdout
