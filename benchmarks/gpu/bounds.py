"""What must hold on a GPU, by what the sections of a report say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu import interference
from benchmarks.gpu.decode import DIFFERENT
from benchmarks.gpu.record import Record
from benchmarks.gpu.scale import Scale
from benchmarks.interference_cases import CHURN, TRICKLE


@dataclass(frozen=True)
class Bound:
    """value: of the part's section. The limit may be of the section, too."""

    name: str
    part: str
    value: Callable[[Mapping[str, Any]], float]
    at_least: float | None = None
    at_most: float | Callable[[Mapping[str, Any]], float] | None = None


def bounds(scale: Scale) -> list[Bound]:
    lines: list[Bound] = []
    for name in scale.decode:
        part = f"decode-{name}"
        lines += [
            Bound(
                f"{name}: step of {scale.streams} different adapters, to its byte roofline",
                part,
                lambda section: section["fraction_of_roofline"][DIFFERENT],
                at_least=0.7,
            ),
            *(
                Bound(f"{name}: {what}", part, _ratio(what), at_most=limit)
                for what, limit in (
                    ("tax of 1 adapter", 1.05),
                    ("tax of 1 adapter, 1 stream", 1.05),
                    ("ranks mixed to the same total rank spread evenly", 1.1),
                )
            ),
        ]
    few, most = min(scale.slora.num_adapters), max(scale.slora.num_adapters)
    lines += [
        Bound(
            f"{part}: {most} adapters to {few}, times slower",
            part,
            lambda section: section["slower"],
            at_most=lambda section: section["may_be_slower"],
        )
        for part in scale.slora.settings
    ]
    lines.append(
        Bound(
            f"LoRA kernels at {scale.streams} different adapters of rank {scale.rank}, to a peer's",
            "peer-lora",
            lambda section: max(
                case["ratio"] for case in section["cases"] if case["kind"] == "equal"
            ),
            at_most=0.8,
        )
    )
    lines += [
        Bound(
            f"interference: {name}",
            "interference",
            lambda section, case=case: section[case]["ratios"][0]["median"],
            at_most=interference.BOUND,
        )
        for case, name in (("trickle", TRICKLE), ("churn", CHURN))
    ]
    for part, what in (("check", "gpu-check"), ("memcheck", "gpu-sanitize")):
        lines.append(
            Bound(
                f"{what}: tests that failed or were not run",
                part,
                lambda section: section["num_failed"] + section["num_left_out"],
                at_most=0,
            )
        )
    return lines


def judge(scale: Scale, record: Record) -> list[dict[str, Any]]:
    """Each line with its value, limit and whether it holds: None where nothing was measured."""
    lines: list[dict[str, Any]] = []
    for bound in bounds(scale):
        section = record.result(bound.part)
        line: dict[str, Any] = {"name": bound.name, "part": bound.part}
        if section is None:
            lines.append({**line, "holds": None, "why_not_measured": _why(record, bound.part)})
            continue
        value, at_most = bound.value(section), bound.at_most
        if callable(at_most):
            at_most = at_most(section)
        holds = (bound.at_least is None or value >= bound.at_least) and (
            at_most is None or value <= at_most
        )
        line |= {"value": value, "at_least": bound.at_least, "at_most": at_most, "holds": holds}
        line["commit"] = record.sections[bound.part]["commit"]
        lines.append(line)
    return lines


def print_judged(lines: list[dict[str, Any]]) -> None:
    print("\nmust hold")
    for line in lines:
        if line["holds"] is None:
            print(f"{line['name']:<72} not measured: {line['why_not_measured']}")
            continue
        limit = f">= {line['at_least']:g}" if line["at_least"] is not None else ""
        limit += f"<= {line['at_most']:.3g}" if line["at_most"] is not None else ""
        verdict = "holds" if line["holds"] else "DOES NOT HOLD"
        print(f"{line['name']:<72}{line['value']:>8.3f}  {limit:<9} {verdict}")


def _ratio(name: str) -> Callable[[Mapping[str, Any]], float]:
    def value(section: Mapping[str, Any]) -> float:
        return next(line["median"] for line in section["ratios"] if line["name"] == name)

    return value


def _why(record: Record, part: str) -> str:
    if part in record.skipped:
        return record.skipped[part]
    section = record.sections.get(part)
    if section is None:
        return "not run"
    return f"failed: {section['reason']}: {section['message']}"
