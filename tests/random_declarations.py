"""Hypothesis strategies for declarations of `random_pipelines`, and for items."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from .random_pipelines import ASYNC_FLAVOURS, FIELDS, FLAVOURS, RUN, Declaration, Level, Step


class Maker:
    """Makes one step after another of what there is."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.steps: list[Step] = []
        self.levels: dict[str, Level] = dict.fromkeys(FIELDS, ())  # of all that can be bound
        self.owners: dict[str, Step] = {}  # of elements

    def one_of(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def some(self, values: list[str], least: int, most: int) -> list[str]:
        if not values or not most:
            return []
        most = min(most, len(values))
        chosen = st.lists(st.sampled_from(values), min_size=min(least, most), max_size=most, unique=True)
        return self.draw(chosen)  # type: ignore[no-any-return]

    def rests_on(self, name: str) -> set[str]:
        """The expansions that must have ended with all their elements before this has."""
        steps = {step.name: step for step in self.steps}
        found: set[str] = set()
        own = steps[name].expand if name in steps else None
        queue = [self.owners[name].name if name in self.owners else name]
        if own is not None:
            found.add(own)  # it has ended when its elements have
            queue += [inner.name for inner in self.steps if own in inner.level]
        seen = set(queue)
        while queue:
            step = steps.get(queue.pop())
            if step is None:
                continue
            sources = [*step.binds.values(), *step.after, *step.offers]
            trees = [step.collect] if isinstance(step.collect, str) else []
            for source in sources:
                level = steps[source].level if source in steps else self.levels.get(source, ())
                common = sum(1 for one, other in zip(level, step.level, strict=False) if one == other)
                trees += level[common : common + 1]
                if source in step.after and steps[source].expand not in (None, *step.level):
                    trees.append(steps[source].expand)  # it has ended when its elements have
            sources += [self.owners[one].name for one in sources if one in self.owners]
            for tree in trees:
                found.add(str(tree))
                sources.append(self.owners[str(tree)].name)
                sources += [inner.name for inner in self.steps if tree in inner.level]
            queue += [one for one in sources if one not in seen]
            seen.update(sources)
        return found

    def may_come_after(self, source: str, level: Level) -> bool:
        """Whether what runs on that level can need this: what it rests on must not be open then."""
        at = next((step.level for step in self.steps if step.name == source), self.levels.get(source, ()))
        common = sum(1 for one, other in zip(at, level, strict=False) if one == other)
        tree = [step.name for step in self.steps if set(at[common : common + 1]) & set(step.level)]
        rests = set().union(*(self.rests_on(name) for name in (source, *tree)))
        return at != RUN and not (set(level) - set(at)) & rests

    def at(self, level: Level, *, above: bool = False) -> list[str]:
        names = [
            name
            for name, at in self.levels.items()
            if (at == level[: len(at)] and at != level if above else at == level)
        ]
        return names if level == RUN else [name for name in names if self.may_come_after(name, level)]

    def add(self) -> None:
        kinds = ["plain"] * 3 + ["expand"] * 2 + ["collect"] * 4 * bool(self.owners) + ["run"]
        kind = self.one_of(*kinds)
        name = f"p{len(self.steps)}"
        if kind == "run":
            step = self.run_level(name)
        else:
            step = self.collecting(name) if kind == "collect" else self.passing(name)
            is_expansion = kind == "expand" or (kind == "collect" and self.one_of(True, False, False, False))
            step = self.varied(step, expands=is_expansion and len(step.level) < 3)
        self.steps.append(step)
        if step.expand is not None:
            self.owners[step.expand] = step
            self.levels[step.expand] = (*step.level, step.expand)
        else:
            self.levels[name] = step.level

    def passing(self, name: str) -> Step:
        levels = sorted({level for level in self.levels.values() if level != RUN}, key=len, reverse=True)
        level = self.one_of(*levels)
        chosen = self.some(self.at(level), 1, 2) + self.some(self.at(level, above=True), 0, 1)
        return Step(name, level, named(chosen))

    def collecting(self, name: str) -> Step:
        element = self.one_of(*self.owners)
        outer = self.owners[element].level
        chosen = self.some(self.at((*outer, element)), 0, 2)
        chosen += self.some([*self.at(outer), *self.at(outer, above=True)], 0, 1)
        binds = named(chosen or [element])
        inner = [key for key, one in binds.items() if self.levels[one] == (*outer, element) and one != element]
        missing = self.one_of(None, "ignore", "skip")
        return Step(name, outer, binds, self.seen(inner), collect=element, missing=missing)

    def seen(self, inputs: list[str]) -> frozenset[str]:
        return frozenset(one for one in inputs if self.one_of(True, False))

    def varied(self, step: Step, *, expands: bool) -> Step:
        """With what any phase of an item may have."""
        others = [one.name for one in self.steps if self.may_come_after(one.name, step.level)]
        offers = [name for name in self.at(step.level) if name.startswith("p") and name not in step.binds.values()]
        batch = None if step.outcomes else self.one_of(None, None, None, 1, 2, 3)
        is_async = self.one_of(True, True, False)
        flavour = self.one_of(*(ASYNC_FLAVOURS if is_async else ("thread", "inline")))
        return Step(
            step.name,
            step.level,
            step.binds,
            step.outcomes,
            offers=tuple(self.some(["z", *([] if step.collect else offers)], 0, 1))
            if self.one_of(True, False, False)
            else (),
            after=tuple(self.some(others, 1, 2)) if self.one_of(True, False, False, False) else (),
            expand=f"e{len(self.steps)}" if expands else None,
            collect=step.collect,
            missing=step.missing,
            when=self.one_of(None, None, None, "some", "raises"),
            batch=batch,
            batch_wait=self.one_of(None, None, 0.0, 0.3) if batch else None,
            breaks=self.one_of(*[None] * 9, "raises", "one too few", "no list") if batch else None,
            late=is_async and batch is None and self.one_of(True, False, False),
            flavour=flavour,
            elements=self.one_of("list", "generator", *(["async generator"] if is_async else []))
            if expands
            else "list",
            limit=self.one_of(None, None, None, 1, 2, "s", "rate"),
        )

    def run_level(self, name: str) -> Step:
        items, once = self.at(()), self.at(RUN)
        when = self.one_of(None, None, None, "some", "raises")
        flavour = self.one_of(*FLAVOURS)
        kind = self.one_of("list", "list", "live", "order", *(["then"] if once else []))
        phases = [step.name for step in self.steps]
        if kind == "then":
            return Step(name, RUN, named(self.some(once, 1, 2)), when=when, flavour=flavour)
        per_item = [step.name for step in self.steps if step.level != RUN]
        if kind == "order" and phases:
            return Step(name, RUN, {}, after=tuple(self.some(phases, 1, 2)), collect=True, flavour=flavour)
        if kind == "live":
            binds = named(self.some(items, 1, 1))
            outcomes = self.seen([key for key, one in binds.items() if one.startswith("p")])
            after = tuple(self.some(per_item, 0, 1))
            return Step(
                name, RUN, binds, outcomes, after=after, collect=True, live=True, flavour=self.one_of(*ASYNC_FLAVOURS)
            )
        binds = named(self.some(items, 1, 2) + self.some(once, 0, 1))
        outcomes = self.seen([key for key, one in binds.items() if one.startswith("p") and not self.levels[one]])
        missing = self.one_of(None, None, "ignore", "skip")
        offers = tuple(self.some(["z"], 0, 1))
        after = tuple(self.some(phases, 0, 1))
        return Step(name, RUN, binds, outcomes, offers, after, None, True, missing, when=when, flavour=flavour)


def named(sources: list[str]) -> dict[str, str]:
    return {f"a{number}": source for number, source in enumerate(sources)}


@st.composite
def declarations(draw: Any, most: int = 9) -> Declaration:
    maker = Maker(draw)
    for _ in range(draw(st.integers(1, 3)) + draw(st.integers(0, most - 3))):
        maker.add()
    places = draw(st.permutations(range(len(maker.steps)))) if draw(st.booleans()) else range(len(maker.steps))
    return Declaration(
        tuple(maker.steps), tuple(places), draw(st.booleans()), draw(st.sampled_from([10**9, 30, 9, 10**9, 30, 5, 3]))
    )


@st.composite
def items(draw: Any, least: int = 0, most: int = 4) -> list[Any]:
    """Some lack `z`, of some `w` is no int, some are no mappings."""
    made: list[Any] = []
    for _ in range(draw(st.integers(least, most))):
        item = {
            "x": draw(st.integers(0, 60)),
            "y": draw(st.integers(0, 3)),
            "w": draw(st.sampled_from([1, 2, 3, 4, 5, "no"])),
        }
        if draw(st.booleans()):
            item["z"] = draw(st.integers(0, 9))
        made.append(item if draw(st.integers(0, 9)) else 7)
    return made
