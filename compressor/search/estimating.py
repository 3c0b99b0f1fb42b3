"""Estimates of options: by one backward pass, by a trial for each option, or from the cache of an earlier run."""

from dataclasses import dataclass, replace

import numpy as np

from compressor.artifacts.answers import describe, list_facts
from compressor.compression.apply import Treatments
from compressor.compression.reached import find_reached
from compressor.contracts import EstimableMetric, Estimate, EstimateRequest, Prefixes
from compressor.errors import ConfigError
from compressor.models.gradients import PASSES_OF_BACKWARD
from compressor.progress import watch
from compressor.search.additivity import StartingValues
from compressor.search.applied_plan import AppliedPlan
from compressor.search.trial_scoring import TrialScorer
from compressor.sensitivity.cache import EstimateCache, Known, estimates_folder, from_content, to_content
from compressor.sensitivity.estimator import GradientEstimator, count_backward_passes


@dataclass
class Estimator:
    """Answers estimate requests on the search prefixes. Estimates of the base are cached, in `cache_bytes` on disk."""

    applied: AppliedPlan
    scorer: TrialScorer
    starting_values: StartingValues
    notes: list[str]
    cache_bytes: int = 0

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        """The estimated effects of options; a note says what a prediction ignores."""
        note = note_ignored_inputs(self.applied.treatments, request)
        self.notes.extend([note] if note and note not in self.notes else [])
        cache = self._open_cache(request)
        known = cache.read(request) if cache else None
        if known is not None:
            self.scorer.ledger.cached += sum(map(len, request.options.values()))
        else:
            known = self._measure(request) if request.measured else Known(self._predict(request))
            if cache:
                cache.write(request, known)
        if known.level is not None:
            self.starting_values.add(request.objective, request.start, known.level)
        return known.estimates

    def _open_cache(self, request: EstimateRequest) -> EstimateCache | None:
        """The cache for this request; None if there is no cache, or the model is not the base any more."""
        if not self.cache_bytes or self.applied.kept or request.at or (folder := estimates_folder()) is None:
            return None
        evaluator, metric = self.scorer.evaluators[Prefixes.SEARCH], self.scorer.metrics[request.objective]
        treatments, mode, seed = self.applied.treatments, evaluator.mode.value, self.scorer.seed
        return EstimateCache(folder, self.cache_bytes, evaluator, treatments, metric, mode, seed)

    def _predict(self, request: EstimateRequest) -> dict[str, Estimate]:
        """By one backward pass."""
        objective, applied = self.scorer.metrics[request.objective], self.applied
        if not isinstance(objective, EstimableMetric):
            raise ConfigError(f"metric `{request.objective}` cannot be estimated; measure it, or choose another")
        reference, is_base = self.scorer.evaluators[Prefixes.SEARCH].reference, not applied.kept
        estimator = GradientEstimator(
            applied.model, reference, applied.treatments, objective, is_base, self.scorer.seed
        )
        description = f"round {self.scorer.ledger.round}: estimating options"
        key, answers = self._make_key(request), self.scorer.answers
        stored = answers.find(key)
        known = from_content(stored, list(request.options)) if stored else None
        if known is None:
            known = Known(watch(self.scorer.progress, description, lambda: estimator.estimate(request)))
            content = to_content(known)
            answers.add(key, content.arrays, content.facts)
        passes = count_backward_passes(request, is_base)
        self.scorer.ledger.spend(passes * PASSES_OF_BACKWARD, request.start, request.stop)
        return known.estimates

    def _make_key(self, request: EstimateRequest) -> str:
        """The key of an estimate among the answers of this run."""
        options = [[name, *map(describe, chosen)] for name, chosen in request.options.items()]
        question = (request.objective, request.by_row, request.start, request.stop, list_facts(request.at), options)
        return self.scorer.answers.make_key("estimate", *question)

    def _measure(self, request: EstimateRequest) -> Known:
        """By a trial for each option: the difference of the objective's first value per sequence."""
        now, *values = self.scorer.measure(request.list_trials(), request.objective, request.start, request.stop)
        answer, start, silent = {}, 0, []
        for name, options in request.options.items():
            stop = start + len(options)
            answer[name] = Estimate(np.stack([value - now for value in values[start:stop]], axis=1))
            start = stop
            if not answer[name].changes.any():
                silent.append(name)
        if silent:
            reference = self.scorer.evaluators[Prefixes.SEARCH].reference
            found = find_reached(self.applied.model, reference, silent, request.start, request.stop)
            answer |= {name: replace(answer[name], reached=False) for name in silent if name not in found}
        return Known(answer, None if request.at else now)


def note_ignored_inputs(treatments: Treatments, request: EstimateRequest) -> str | None:
    """A note if an option transforms inputs, which a prediction ignores; else None."""
    options = (option for choices in request.options.values() for option in choices if option is not None)
    transforming = (option for option in options if treatments.resolve(option).transforms_inputs is True)
    compressors = dict.fromkeys(option.compressor for option in transforming)
    if request.measured or not compressors:
        return None
    return (
        f"Estimates of {', '.join(compressors)} include the change of the weights but not that of the inputs, so they "
        "are too low; scores include both."
    )
