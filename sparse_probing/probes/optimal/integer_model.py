"""The same search by Gurobi: an integer model with one binary a neuron, whose objective is held up by lazy cuts.

The only module that imports gurobipy, and only when it is called. It serves fits with ``solver="gurobi"``, and audits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_probing.errors import InputError
from sparse_probing.probes.optimal.cuts import Cut, Index, Pool, Problem, make_cut
from sparse_probing.probes.optimal.incumbents import Incumbent
from sparse_probing.probes.optimal.interior_point import Array

# What the licence that comes with gurobipy allows, less the variable of the epigraph.
LICENSED_NEURONS = 1999
# Cuts that a model starts with, well below the constraints that the licence allows; lazy ones do not count.
FIRST_CUTS = 500
SHARES_TOLERANCE = 3e-6


@dataclass(frozen=True)
class Found:
    """How a model ended.

    Attributes
    ----------
    bound:
        No support of the neurons it chose from, k of them, has a lower objective. Holds whatever the status.
    value:
        Objective of the model's best solution, infinite if it has none.
    nodes:
        Nodes explored.
    status:
        ``optimal``, ``time_limit`` (of seconds or of cuts) or ``size_limit`` (of the licence).
    """

    bound: float
    value: float
    nodes: int
    status: str


def search(
    problem: Problem,
    incumbent: Incumbent,
    fixed: Index,
    free: Index,
    pool: Pool,
    *,
    gap: float,
    seed: int = 0,
    seconds: float | None = None,
    max_cuts: int | None = None,
) -> Found:
    """Search the supports that hold ``fixed`` and the rest from ``free``; better ones are offered to the incumbent.

    Gurobi swallows what a callback raises and still reports an optimum, so the callback stores it and stops the model,
    and it is raised here.

    Parameters
    ----------
    pool:
        Cuts to start from; those of the search join it.
    gap:
        Relative gap at which the model is solved.
    seed:
        Of Gurobi's own choices. With one thread and no limit of seconds, equal input gives equal results.
    seconds, max_cuts:
        When to stop: by wall time, or by the number of cuts.

    Raises
    ------
    InputError
        If gurobipy is not installed, does not start, or ends in no way that is known.
    """
    k = incumbent.k
    alive = np.concatenate([fixed, free])
    floor = max(cut.bound(k) for cut in pool.cuts)
    if alive.size < k:  # every support was dropped before
        return Found(incumbent.value, np.inf, 0, "optimal")
    failure: list[BaseException] = []
    gp, GRB = _gurobi()
    with _environment(gp) as env, gp.Model(env=env) as model:
        model.Params.Threads = 1
        model.Params.Seed = seed % 2_000_000_000
        model.Params.LazyConstraints = 1
        model.Params.MIPGap = gap
        if seconds is not None:
            model.Params.TimeLimit = seconds
        z = model.addMVar(alive.size, vtype=GRB.BINARY)
        z[: fixed.size].LB = 1.0
        t = model.addVar(lb=floor, obj=1.0)
        model.addConstr(z.sum() == k)
        known = sorted(pool.cuts, key=lambda cut: -cut.bound(k))[:FIRST_CUTS]
        for cut in known:
            model.addConstr(t + cut.gains[alive] @ z >= cut.base)
        z.Start = np.isin(alive, incumbent.support).astype(float)
        t.Start = incumbent.value
        binaries, solved_at, left = z.tolist(), [0], [np.inf if max_cuts is None else max_cuts]

        def separate(model: Any, where: int) -> None:
            try:
                if where == GRB.Callback.MIPSOL:
                    shares = np.array(model.cbGetSolution(binaries))
                    cut = cut_at_support(problem, incumbent, alive[shares > 0.5])
                elif where == GRB.Callback.MIPNODE and model.cbGet(GRB.Callback.MIPNODE_STATUS) == GRB.OPTIMAL:
                    node = int(model.cbGet(GRB.Callback.MIPNODE_NODCNT))
                    if node and node == solved_at[0]:
                        return
                    solved_at[0] = node
                    shares = np.array(model.cbGetNodeRel(binaries))
                    cut = cut_at_shares(problem, alive, shares)
                else:
                    return
                pool.add(cut)
                model.cbLazy(t + gp.quicksum(map(_times, cut.gains[alive].tolist(), binaries)) >= cut.base)
                left[0] -= 1
                if left[0] < 0:
                    model.terminate()
            except BaseException as error:
                failure.append(error)
                model.terminate()

        try:
            model.optimize(separate)
        except gp.GurobiError as error:
            if error.errno != GRB.Error.SIZE_LIMIT_EXCEEDED:
                raise
            return Found(floor, np.inf, 0, "size_limit")
        if failure:
            raise failure[0]
        if model.Status in (GRB.OPTIMAL, GRB.INFEASIBLE, GRB.CUTOFF):
            status = "optimal"
        elif model.Status in (GRB.TIME_LIMIT, GRB.INTERRUPTED, GRB.MEM_LIMIT):
            status = "time_limit"
        else:
            raise InputError(
                f"Gurobi ended with status {model.Status}; expected an optimum or a limit.",
                remedy='Use solver="tree", which needs no licence.',
            )
        bound = float(model.ObjBound) if model.Status != GRB.INFEASIBLE else incumbent.value
        value = float(model.ObjVal) if model.SolCount else np.inf
        # Gurobi may break a cut by its feasibility tolerance.
        return Found(max(floor, min(bound - 1e-6, incumbent.value)), value, int(model.NodeCount), status)


def _times(gain: float, variable: Any) -> Any:
    return gain * variable


def cut_at_support(problem: Problem, incumbent: Incumbent, support: Index) -> Cut:
    """The cut of the probe on a support, which the incumbent comes to know."""
    return make_cut(problem, incumbent.offer(support.tolist())[1])


def cut_at_shares(problem: Problem, neurons: Index, shares: Array) -> Cut:
    """The cut at fractional shares (n_neurons,)."""
    some = shares > 1e-6
    return make_cut(problem, problem.dual_at(neurons[some], shares[some], tolerance=SHARES_TOLERANCE))


def solver_name() -> str:
    """Name and version of the solver, as audits give it.

    Raises
    ------
    InputError
        If gurobipy is not installed.
    """
    gp, _ = _gurobi()
    return f"gurobi {'.'.join(map(str, gp.gurobi.version()))}"


def check_solver() -> None:
    """Raise InputError unless gurobipy is installed and starts with the licence that it finds."""
    gp, _ = _gurobi()
    with _environment(gp):
        pass


def _environment(gp: Any) -> Any:
    try:
        return gp.Env(params={"OutputFlag": 0})
    except gp.GurobiError as error:
        raise InputError(
            f"Gurobi does not start: {' '.join(str(error).split())}.",
            remedy="Mend its licence, or search by tree, which needs no licence.",
        ) from error


def _gurobi() -> tuple[Any, Any]:
    try:
        import gurobipy
    except ImportError as error:
        raise InputError(
            "gurobipy is not installed.", remedy="Install gurobipy, or search by tree, which needs no licence."
        ) from error
    return gurobipy, gurobipy.GRB
