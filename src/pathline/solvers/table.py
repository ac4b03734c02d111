"""A plan as text, one row a line."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from pathline.solvers.plan import Coefficient, Plan, Product, Terms, told_time


def table(plan: Plan) -> str:
    """Return a plan as text; see `Plan.table`."""
    head = f"x_new = Σ a x + Σ b F + Σ c z;  F: {plan.view};  {plan.nfe} evaluations"
    lines = [head]
    for number, row in enumerate(plan.rows, len(plan.start)):
        terms = [*_written("x", row.x), *_written("F", row.f), *_written("z", row.z)]
        terms += [f"{_number(c)} g{p.state}·{_told(p)}" for p, c in row.g.items()]
        if row.has_constant:
            terms.append(_number(row.constant))
        mark = "" if row.lands else "  (stage)"
        lines.append(f"x{number:<4d} t = {told_time(row.t):<12} {' '.join(terms)}{mark}")
    return "\n".join(lines)


def _written(letter: str, terms: Terms) -> Iterator[str]:
    for k, c in terms.items():
        yield f"{_number(c)} {letter}{k}"


def _told(product: Product) -> str:
    _, kind, leg, channel = product
    if kind == "one":
        return "1"
    return (
        f"e{channel}" if kind == "unit" else f"{kind}{channel if kind[:2] == 'ij' else ''}[{leg}]"
    )


def _number(c: Coefficient) -> str:
    return f"[{'×'.join(map(str, c.shape))}]" if isinstance(c, Tensor) else f"{c:+.6g}"
