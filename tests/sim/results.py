"""What a simulation measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, pstdev, quantiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One request that has ended; times in seconds of the virtual clock.

    Attributes:
        engine_id: where it ran.
        group: whom it shares its prefix with.
        arrived_at: at the router.
        first_token_at: at the engine.
        ended_at: at the engine.
        prompt_tokens: of the prompt.
        cached_tokens: of the prompt, found in the engine's cache.
        ideal_tokens: of the prompt, in pages that any request before it had already, wherever it ran.
        output_tokens: of the output.
    """

    engine_id: str
    group: int
    arrived_at: float
    first_token_at: float
    ended_at: float
    prompt_tokens: int
    cached_tokens: int
    ideal_tokens: int
    output_tokens: int

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.first_token_at - self.arrived_at


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run.

    Attributes:
        done: all requests in the order of their ends.
        work_s: by engine, seconds that its tokens cost, without the floor of each step.
        seconds: from the beginning to the last end.
    """

    done: tuple[Done, ...]
    work_s: Mapping[str, float]
    seconds: float

    @cached_property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that came from a cache."""
        return sum(each.cached_tokens for each in self.done) / sum(each.prompt_tokens for each in self.done)

    @cached_property
    def ideal_hit_rate(self) -> float:
        """The same for a cache that is endless and common to all engines."""
        return sum(each.ideal_tokens for each in self.done) / sum(each.prompt_tokens for each in self.done)

    @cached_property
    def load_cov(self) -> float:
        """Coefficient of variation of the engines' work: 0 is an even load."""
        work = list(self.work_s.values())
        return pstdev(work) / fmean(work)

    @cached_property
    def ttft_mean_s(self) -> float:
        """Mean time to the first token."""
        return fmean(each.ttft_s for each in self.done)

    @cached_property
    def ttft_p99_s(self) -> float:
        """99th percentile of the time to the first token."""
        return quantiles((each.ttft_s for each in self.done), n=100)[98]

    @cached_property
    def e2e_mean_s(self) -> float:
        """Mean time to the last token."""
        return fmean(each.ended_at - each.arrived_at for each in self.done)

    @property
    def requests_per_s(self) -> float:
        """Requests that ended in a second, over the whole run."""
        return len(self.done) / self.seconds

    def holders(self, group: int) -> set[str]:
        """Return the engines that a group's requests ran at."""
        return {each.engine_id for each in self.done if each.group == group}

    def after(self, at: float) -> Result:
        """Return the requests that arrived from a time on; the engines' work stays that of the whole run."""
        done = tuple(each for each in self.done if each.arrived_at >= at)
        return Result(done=done, work_s=self.work_s, seconds=self.seconds)


class Mean:
    """An attribute of `Average`: the mean of what the runs have under its name."""

    def __set_name__(self, owner: type[Average], name: str) -> None:
        self._name = name

    def __get__(self, average: Average, owner: type[Average]) -> float:
        return fmean(getattr(run, self._name) for run in average.runs)


@dataclass(frozen=True)
class Average:
    """Several runs of one kind; the means of what `Result` tells of each."""

    runs: tuple[Result, ...]

    hit_rate = Mean()
    ideal_hit_rate = Mean()
    load_cov = Mean()
    ttft_mean_s = Mean()
    ttft_p99_s = Mean()
    e2e_mean_s = Mean()
    requests_per_s = Mean()

    @property
    def load_cov_spread(self) -> float:
        """Standard deviation of `load_cov` between the runs."""
        return pstdev(run.load_cov for run in self.runs)
