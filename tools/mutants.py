"""Break our own code on purpose, one defect at a time, and see that a named test notices: `make mutants`.

Each mutant replaces one piece of text in one function, in memory, and runs the test that must fail, in a child process.
A mutant counts as killed only by a failed assertion (or a missing refusal): a crash or an import error proves nothing.
The rows are those of the catalogue of ways to lose privacy silently that the project keeps.

    python tools/mutants.py [NAME ...]       all of them, or those named
"""

# ruff: noqa: E501 (one mutant, one line and its test)

import argparse
import importlib
import inspect
import io
import multiprocessing
import sys
import textwrap
import time
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

KILLED, SURVIVED, CRASHED = "killed", "SURVIVED", "CRASHED"
BY_ASSERTION = ("AssertionError", "Failed: DID NOT RAISE")


@dataclass(frozen=True)
class Mutant:
    """One defect: in `place` ("module:qualified.name"), `old` becomes `new`; `test` must fail."""

    name: str
    place: str
    old: str
    new: str
    test: str


P, T = "tests/privacy/test_", "tests/train/test_finetune.py::"
S = "tests/train/test_selecting.py::"
W, A = "tests/train/test_warm_start.py::", "tests/train/test_asking.py::"
V, R = "tests/test_verifying.py::", "tests/test_tampering.py::test_a_tampered_release_is_rejected"
SEEDED = '__import__("dpldm.privacy.entropy", fromlist=["x"]).SeededEntropy(0)'
KNOWN = "portraits_known(run, plan, ledger, tuner.backbone_digest, shape)"
EXACT = f"replace({KNOWN}, means=torch.stack([latents.posterior.mean[latents.labels == k].mean(0, keepdim=True) for k in range(2)]))"
B = "tests/baselines/test_classifier.py::"
PE = "tests/baselines/test_pe.py::test_"
POR = "tests/baselines/test_portraits_alone.py::test_"
RUN = "tests/train/test_portraying.py::test_"
Q = P + "queries.py::test_"
MUTANTS = [
    # --- noise
    Mutant("no noise", "privacy.noise:add_gaussian", "standard_deviation * noise", "0 * noise",
           P + "noise.py::test_noise_has_the_wanted_standard_deviation"),
    Mutant("half the noise", "privacy.mechanism:PrivateGradient._noised", "sigma, clip_norm = self._plan.noise_multiplier,", "sigma, clip_norm = 0.5 * self._plan.noise_multiplier,",
           P + "mechanism.py::test_noise_has_scale_sigma_over_L_also_without_any_record"),
    Mutant("noise without C", "privacy.mechanism:PrivateGradient._noised", "sigma * clip_norm", "sigma",
           P + "mechanism.py::test_noise_has_scale_sigma_over_L_also_without_any_record"),
    Mutant("variance for deviation", "privacy.noise:add_gaussian", "standard_deviation * noise", "standard_deviation**2 * noise",
           P + "noise.py::test_noise_has_the_wanted_standard_deviation"),
    Mutant("one noise for all entries", "privacy.noise:add_gaussian", "standard_gaussian(total.numel(), entropy).view(total.shape)", "standard_gaussian(1, entropy).repeat(total.numel()).view(total.shape)",
           P + "noise.py::test_noise_has_the_wanted_standard_deviation"),
    Mutant("uniform noise", "privacy.noise:standard_gaussian", "return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])[:count]", "return (uniform[:count] - 0.5) * 12**0.5",
           P + "noise.py::test_distribution_is_normal"),
    Mutant("noise in single precision", "privacy.noise:add_gaussian", "(total.double() + standard_deviation * noise).float()", "total + (standard_deviation * noise).float()",
           P + "noise.py::test_sum_is_rounded_once"),
    Mutant("noise that knows the sum", "privacy.noise:add_gaussian", "standard_deviation * noise", "standard_deviation * noise * (total.double().norm() > 0)",
           P + "noise.py::test_noise_does_not_depend_on_the_sum"),
    Mutant("no noise in an empty batch", "privacy.mechanism:PrivateGradient._noised", "sigma * clip_norm", "sigma * clip_norm * float(total.any())",
           P + "mechanism.py::test_noise_has_scale_sigma_over_L_also_without_any_record"),
    Mutant("a rounded sum, and noise that ignores the rounding", "privacy.grid:grid_step", "- 2 * noise_multiplier", "- 0 * noise_multiplier",
           P + "grid.py::test_noise_is_sigma_times_the_influence_that_rounding_leaves"),
    Mutant("a grid for each parameter", "privacy.mechanism:PrivateGradient._noised", "clip_norm, coordinates, self", "clip_norm, total.numel(), self",
           P + "mechanism.py::test_the_grid_is_that_of_all_parameters_together"),
    Mutant("rounded down, not to the nearest", "privacy.grid:rounded_gaussian", "((fraction >> (62 - bits)) + 1 >> 1)", "(fraction >> (63 - bits))",
           P + "grid.py::test_every_integer_has_the_probability_of_its_interval"),
    Mutant("a die with a side too many", "privacy.grid:_proposals", "(die > 1)", "(die > 0)",
           P + "grid.py::test_every_integer_has_the_probability_of_its_interval"),
    Mutant("an integer that overflows", "privacy.grid:add_gaussian_on_grid", ".clamp(-LARGEST, LARGEST)", "",
           P + "grid.py::test_a_sum_beyond_all_measure_is_cut_not_wrapped_around"),
    Mutant("a lone token's order is trusted", "privacy.per_example:_order_bound", "* lengths.sum(1).square()", "* 0 * lengths.sum(1).square()",
           P + "clipping.py::test_tokens_that_cancel_in_an_embedding_do_not_wipe_out_other_examples"),
    Mutant("cut batches are free", "privacy.accounting:epsilon", "delta - cap.delta(sampling_probability, steps)", "delta",
           P + "accounting.py::test_a_cut_costs_its_probability_of_delta"),
    Mutant("a unit filled up to its neighbours' size", "data.latents:PrivateLatents.passes", "torch.unique(sizes).tolist()", "[int(sizes.max())] if len(batch) else []",
           "tests/data/test_latents.py::test_passes_hold_every_unit_once_and_never_fill_one_up"),
    Mutant("noise from a seed", "privacy.entropy:SystemEntropy.bytes", "os.urandom(count)", "hashlib.shake_256(b'0').digest(count)",
           P + "sampling.py::test_system_entropy_never_repeats_itself"),
    # --- clipping
    Mutant("no clipping", "privacy.clipping:flat", ".clamp(max=1.0)", ".clamp(max=1.0) * 0 + 1",
           P + "clipping.py::test_one_example_more_changes_the_sum_by_at_most_C"),
    Mutant("clip to 2C", "privacy.clipping:flat", "clip_norm / norms", "2 * clip_norm / norms",
           P + "clipping.py::test_one_example_more_changes_the_sum_by_at_most_C"),
    Mutant("squared norm for norm", "privacy.clipping:ClippedSum._clip_factors", "squared.sqrt()", "squared",
           P + "clipping.py::test_clipped_sum_equals_autograd_loop"),
    Mutant("a parameter left out of the norm", "privacy.clipping:ClippedSum._clip_factors", "for held in self._pending.values()", "for held in list(self._pending.values())[1:]",
           P + "clipping.py::test_clipped_sum_equals_autograd_loop"),
    Mutant("each parameter clipped alone", "privacy.clipping:ClippedSum._add", "self._sums[name], factors)", "self._sums[name], RULES[self.rule](held.squared_norms.sqrt(), self.clip_norm))",
           P + "clipping.py::test_whole_denoiser_equals_autograd_loop"),
    Mutant("the mean clipped instead of examples", "privacy.clipping:ClippedSum._add", "self._sums[name], factors)", "self._sums[name], torch.full_like(factors, float(factors.mean())))",
           P + "clipping.py::test_clipped_sum_equals_autograd_loop"),
    Mutant("draws added, not averaged", "train.example_losses:example_losses", "losses.view(-1, each).mean(1)", "losses.view(-1, each).sum(1)",
           T + "test_an_examples_loss_is_the_mean_of_its_own_draws"),
    Mutant("norms of two uses added", "privacy.per_example:merge", "return compact(replace(first, inputs=inputs, outputs=outputs))", "return compact(first)",
           P + "clipping.py::test_clipped_sum_equals_autograd_loop"),
    Mutant("ghost norm without slack", "privacy.per_example:Outer._rounding_bound", "factor = (", "factor = 0 * (",
           P + "clipping.py::test_cancelling_tokens_cannot_hide_a_norm"),
    Mutant("a not-finite example counts", "privacy.clipping:ClippedSum._clip_factors", "usable = torch.isfinite(squared) & torch.isfinite(losses)", "usable = losses == losses.nan_to_num() + float('nan') * 0 if False else torch.ones_like(squared, dtype=torch.bool)",
           P + "clipping.py::test_an_example_without_finite_gradient_contributes_exactly_zero"),
    Mutant("a null record counts", "privacy.clipping:ClippedSum._clip_factors", "usable &= keep", "pass",
           P + "clipping.py::test_a_null_record_contributes_exactly_zero"),
    Mutant("0 times inf", "privacy.per_example:_emptied", "return rows.masked_fill(ignored.view(-1, *[1] * (rows.dim() - 1)), 0.0)", "return rows",
           P + "clipping.py::test_an_example_without_finite_gradient_contributes_exactly_zero"),
    Mutant("padding row of an embedding trained", "privacy.layers:EmbeddingTap.gradients", "if layer.padding_idx is not None:", "if False:",
           P + "clipping.py::test_embeddings_with_repeated_ids_padding_and_ties"),
    Mutant("repeated ids not added before the square", "privacy.per_example:Rows.squared_norms", "return norms + _order_bound", "return self.outputs.square().sum((1, 2)) + _order_bound",
           P + "clipping.py::test_embeddings_with_repeated_ids_padding_and_ties"),
    Mutant("batch norm let pass", "privacy.clipping:_refuse_mixing", "raise UnsupportedModel(", "UnsupportedModel(",
           P + "clipping.py::test_what_cannot_be_clipped_is_refused_by_name"),
    Mutant("sums in bfloat16", "privacy.clipping:ClippedSum._add", "self._sums[name], factors)", "self._sums[name], factors); self._sums[name] = self._sums[name].bfloat16().to(self._sums[name])",
           P + "clipping.py::test_under_bfloat16_autocast_sums_and_norms_are_float32"),
    # --- sampling
    Mutant("a batch of fixed size", "privacy.sampling:_bernoulli", "return torch.nonzero(words < threshold).flatten()", "return words.argsort()[: round(units * sampling_probability)].sort().values",
           P + "sampling.py::test_batch_sizes_vary_as_those_of_a_poisson_draw"),
    Mutant("one coin for pairs of units", "privacy.sampling:_bernoulli", "words = random_words(units, entropy)", "words = random_words(units, entropy).view(-1)[torch.arange(units) // 2]",
           P + "sampling.py::test_units_are_independent_in_pairs"),
    Mutant("twice the rate", "privacy.sampling:_bernoulli", "int(Fraction(sampling_probability) * 2**64)", "int(min(Fraction(1), 2 * Fraction(sampling_probability)) * 2**64)",
           P + "sampling.py::test_rate_is_q"),
    Mutant("the first records of a cut batch", "privacy.sampling:poisson_batch", "kept = random_words(len(batch), entropy).argsort()[:largest]", "kept = torch.arange(largest)",
           P + "sampling.py::test_every_part_is_equally_likely"),
    Mutant("divided by the batch's size", "privacy.mechanism:PrivateGradient.release", "scale = 1.0 / (self._plan.expected_batch_size *", "scale = 1.0 / (max(1, self._clipped._examples) *",
           P + "mechanism.py::test_release_is_the_clipped_sum_over_the_constant_L_times_C"),
    Mutant("q from the folder", "privacy.mechanism:PrivateGradient.draw", "plan.sampling_probability", "plan.expected_batch_size / self._units",
           P + "mechanism.py::test_draws_follow_the_plans_probability_not_the_folders_size"),
    Mutant("two releases of one draw", "privacy.mechanism:PrivateGradient.release", "self._drawn = False", "pass",
           P + "mechanism.py::test_one_noise_per_draw"),
    # --- accounting
    Mutant("the reserve not paid for", "privacy.plan:calibrated", "plan.attempts, plan.cap", "plan.steps, plan.cap",
           P + "plan.py::test_noise_is_calibrated_for_all_attempts"),
    Mutant("one attempt too many", "privacy.ledger:Ledger._charge", "if used >= paid_for:", "if used > paid_for:",
           P + "ledger.py::test_attempts_are_numbered_up_to_steps_and_reserve_and_no_further"),
    Mutant("adjacency mixed up", "privacy.accounting:_relation", "Adjacency.REPLACE_ONE: NeighboringRelation.REPLACE_ONE", "Adjacency.REPLACE_ONE: NeighboringRelation.ADD_OR_REMOVE_ONE",
           P + "accounting.py::test_known_values"),
    Mutant("calibrated on the coarse grid alone", "privacy.accounting:calibrate_noise", "while reached(chosen) > target_epsilon:", "chosen *= 0.97\n    while False:",
           P + "accounting.py::test_calibrated_noise_keeps_the_target_and_wastes_little"),
    # --- ledger
    Mutant("charged after the draw", "privacy.mechanism:PrivateGradient.draw", "self._ledger.charge(self._plan)", "self._entropy.bytes(1); self._ledger.charge(self._plan)",
           P + "mechanism.py::test_every_attempt_is_on_disk_before_its_first_random_bit"),
    Mutant("a line not flushed", "privacy.ledger:Ledger._append", "os.fsync(descriptor)", "pass",
           P + "ledger.py::test_a_charge_returns_after_its_line_was_flushed"),
    Mutant("the chain not checked", "privacy.ledger:read_ledger", "if _encoded(sealed) != text", "if False and _encoded(sealed) != text",
           P + "ledger.py::test_every_changed_byte_is_seen"),
    Mutant("the cap not checked", "privacy.ledger:Ledger.register", "if not all(total <=", "if False and not all(total <=",
           P + "ledger.py::test_cap_bounds_the_sum_of_what_was_let_in"),
    Mutant("plans forgotten on opening", "privacy.ledger:Ledger.attempts", 'return sum(e["event"] == "attempt" and e["plan"] == digest for e in self._entries)', "return 0",
           P + "ledger.py::test_opening_again_does_not_refill_a_plan"),
    # --- queries
    Mutant("a query is read before it is charged", "privacy.queries:ask", "ledger.charge_query(plan, question)\n    summed, sigma = total(), question.noise_multiplier", "summed, sigma = total(), question.noise_multiplier\n    ledger.charge_query(plan, question)",
           P + "queries.py::test_a_line_is_on_disk_before_anything_is_read"),
    Mutant("a query without noise", "privacy.queries:ask", "question.noise_multiplier", "0.0",
           P + "queries.py::test_noise_has_the_declared_deviation_and_none_repeats"),
    Mutant("a group counts once for every image", "privacy.queries:Places.shares", "return weights / weights.sum(1, keepdim=True).clamp(min=1.0)", "return counted.double()",
           P + "queries.py::test_a_unit_more_moves_a_sum_by_at_most_1_and_another_by_at_most_replace_one"),
    Mutant("latents of a query are not cut", "privacy.queries:class_sums", "z.norm(dim=2, keepdim=True).clamp(min=question.clip_norm)", "question.clip_norm",
           P + "queries.py::test_a_unit_more_moves_a_sum_by_at_most_1_and_another_by_at_most_replace_one"),
    Mutant("distances from a class's mean are not cut", "privacy.queries:spread_sums", "r.norm(dim=1, keepdim=True).clamp(min=question.clip_norm)", "question.clip_norm",
           P + "queries.py::test_a_unit_more_moves_a_sum_by_at_most_1_and_another_by_at_most_replace_one"),
    Mutant("entries off the diagonal are stated once and count twice", "privacy.queries:_weights", "torch.where(rows == columns, 1.0, 2.0)", "torch.where(rows == columns, 1.0, 4.0)",
           P + "queries.py::test_a_unit_more_moves_a_sum_by_at_most_1_and_another_by_at_most_replace_one"),
    Mutant("a latent that is not finite spoils the sum", "privacy.queries:class_sums", "rows.known(classes) & torch.isfinite(z).all(2)", "rows.known(classes)",
           P + "queries.py::test_a_sum_is_what_its_definition_says"),
    Mutant("the reserve of a query never ends", "privacy.ledger:Ledger.charge_query", "asked, question.attempts)", "asked, 10 * question.attempts)",
           P + "queries.py::test_a_question_is_asked_as_often_as_is_paid_for_and_then_nothing_is_read"),
    Mutant("queries left out of epsilon", "privacy.plan:PrivacyPlan.epsilon_after", "beside=self.beside", "beside=()",
           P + "plan.py::test_the_noise_pays_for_the_questions_too"),
    Mutant("the reserve of a query is not paid for", "privacy.questions:Question.release", "self.attempts", "1",
           "tests/test_verifying.py::test_an_edited_question_fails"),
    Mutant("replacing costs a query what adding does", "privacy.accounting:_whole_event", "2 / release.replace_one", "2.0",
           P + "accounting.py::test_a_release_alone_is_the_closed_form_of_the_gaussian"),
    Mutant("scores of a query are not cut", "privacy.queries:score_sums", ".clamp(0.0, 1.0)", "",
           P + "queries.py::test_a_unit_more_moves_a_sum_by_at_most_1_and_another_by_at_most_replace_one"),
    Mutant("the score of a trial is not paid for", "privacy.accounting:_accountant_of_selection", "for release in beside)", "for release in ())",
           P + "selection.py::test_is_the_theorem_written_out"),
    Mutant("a trial more than the law allows", "privacy.sampling:draw_trials", "trials = 1", "trials = 2",
           P + "selection.py::test_the_number_of_trials_is_geometric_and_candidates_are_alike"),
    Mutant("an answer is asked for again", "train.asking:ask_once", "is not None:", "is not None and False:",
           "tests/train/test_asking.py::test_a_run_that_goes_on_never_asks_again"),
    # --- the trainer
    Mutant("draws from a seeded generator", "train.example_losses:fresh_draws", "standard_gaussian(rows * shape.numel(), entropy).float()", "torch.randn(rows * shape.numel(), generator=torch.Generator().manual_seed(int.from_bytes(entropy.bytes(4), 'big')))",
           T + "test_every_draw_is_entropy_of_its_own"),
    Mutant("a record drawn twice", "train.algorithm_1:algorithm_1", "latents.passes(batch,", "latents.passes(batch[[0, *range(len(batch))]] if len(batch) else batch,",
           T + "test_parts_make_up_the_draw_and_no_record_comes_twice"),
    Mutant("noise at every physical pass", "train.algorithm_1:algorithm_1", "tuner.update(mechanism.release())", "tuner.update(mechanism.release()); ledger.charge(plan)",
           T + "test_every_update_is_one_attempt_and_one_ledger_line"),
    Mutant("a step lost with an empty batch", "train.algorithm_1:algorithm_1", "tuner.update(mechanism.release())  #", "gradient = mechanism.release()\n            if len(batch):\n                tuner.update(gradient)\n            else:\n                tuner.updates += 1\n            #",
           T + "test_empty_batches_step_and_are_charged"),
    Mutant("images of a group clipped apart", "train.algorithm_1:algorithm_1", "of_units = (losses.view_as(weights) * weights).sum(1)", "of_units = (losses.view_as(weights) * (weights > 0)).sum(1)",
           T + "test_a_groups_gradient_is_the_mean_over_its_images"),
    Mutant("images of a group clipped apart by the classifier", "baselines.classifier:updates", "(losses.view_as(weights) * weights).sum(1)", "(losses.view_as(weights) * (weights > 0)).sum(1)",
           B + "test_the_sum_is_that_of_a_loop_over_units"),
    Mutant("features centred over all images", "evaluation.features:scaled", "rows.mean(1, keepdim=True)", "rows.mean(0)",
           B + "test_a_feature_vector_is_scaled_by_itself_alone"),
    Mutant("a classifier under the run's own plan", "baselines.classifier:classifier_run", 'replace(plan, run=f"{config.name}/classifier")', "plan",
           B + "test_it_is_a_plan_of_its_own_in_the_data_sets_ledger"),
    Mutant("private images without noise", "baselines.result:require_published", "if not config.privacy.public_benchmark:", "if False:",
           "tests/baselines/test_result.py::test_private_images_are_never_used_without_privacy"),
    Mutant("resumed without its ledger", "train.vouching:vouched", "if head is None or not ledger.contains(Head(*head)):", "if False:",
           T + "test_a_ledger_that_forgot_attempts_is_refused"),
    Mutant("resumed under another plan", "train.vouching:vouched", "if any(name not in facts or facts[name] != value for name, value in declared.items()):", "if False:",
           T + "test_the_checkpoint_of_another_plan_is_refused"),
    Mutant("frozen weights tuned", "models.trainable:choose_trainable", "parameter.requires_grad_(tuned)", "parameter.requires_grad_(True); tuned = True",
           T + "test_only_what_is_trained_moves"),
    # --- data
    Mutant("an unreadable record dropped", "data.ingest:ingest", "units = _units(source, images_per_group)", "units = _units(source, images_per_group); pixels, label_index, null = pixels[~null], label_index[~null], null[~null]",
           "tests/data/test_image_ingest.py::test_a_malformed_file_is_one_null_record"),
    Mutant("normalised by the data set", "data.ingest:ingest", "units = _units(source, images_per_group)", "units = _units(source, images_per_group); pixels = pixels - pixels.min()",
           "tests/data/test_image_ingest.py::test_changing_one_record_changes_one_row"),
    Mutant("a group keeps what others leave", "data.ingest:_units", "[:images_per_group]", "[: max(1, images_per_group * 3 // len(members))]",
           "tests/data/test_image_ingest.py::test_what_a_group_keeps_does_not_depend_on_other_groups"),
    # --- written by somebody who had not seen the tests
    Mutant("clip factor has a floor", "privacy.clipping:flat", "clamp(max=1.0)", "clamp(min=1e-5, max=1.0)",
           P + "clipping.py::test_under_autocast_no_example_contributes_more_than_C"),
    Mutant("a convolution's norm from one place of its kernel", "privacy.convolved:_windows", "range(kernel)", "range(1)",
           P + "layers.py::test_every_kind_of_layer_in_every_form"),
    Mutant("a sum of other numbers than the norm's", "privacy.clipping:_Held.require_unchanged", "!= self.versions", "is None",
           P + "clipping.py::test_gradients_changed_in_place_behind_the_norm_are_refused"),
    Mutant("rounding slack forgets cross terms between tokens", "privacy.per_example:Outer._rounding_bound", ".sum(1).square()", ".square().sum(1)",
           P + "clipping.py::test_the_rounding_bound_is_that_of_all_pairs_of_tokens"),
    Mutant("large layers: norm without cross terms", "privacy.per_example:Outer.squared_norms", "[part.squared_norms() for", "[(part.inputs.square().sum(2) * part.outputs.square().sum(2)).sum(1) for",
           P + "clipping.py::test_every_form_of_a_linear_gradient_gives_the_same_sum"),
    Mutant("group weights divided by the pass's widest group", "data.latents:PrivateLatents.records_of", "/ present.sum(1, keepdim=True)", "/ width",
           "tests/data/test_latents.py::test_units_and_their_records"),
    Mutant("an empty draw is drawn again once", "privacy.sampling:poisson_batch", "batch = _bernoulli(units, sampling_probability, entropy)", "batch = _bernoulli(units, sampling_probability, entropy)\n    if units and not len(batch):\n        batch = _bernoulli(units, sampling_probability, entropy)",
           P + "sampling.py::test_few_units_are_drawn_as_often_as_coins_say_also_none_of_them"),
    Mutant("cut of a batch is not uniform", "privacy.sampling:poisson_batch", "random_words(len(batch), entropy).argsort()", "(random_words(len(batch), entropy) % len(batch)).argsort()",
           P + "sampling.py::test_every_part_is_equally_likely"),
    Mutant("entropy repeats after a mebibyte", "privacy.entropy:SystemEntropy.bytes", "return os.urandom(count)", "return (os.urandom(min(count, 2**20)) * (count // 2**20 + 1))[:count]",
           P + "noise.py::test_no_word_of_a_large_draw_comes_twice"),
    Mutant("noise rounded before it is added", "privacy.noise:add_gaussian", "(total.double() + standard_deviation * noise).float()", "total.float() + (standard_deviation * noise).float()",
           P + "noise.py::test_sum_is_rounded_once"),
    Mutant("a question of a declared kind passes with any noise", "privacy.ledger:Ledger.charge_query", "if question not in plan.queries:", "if question.kind not in {held.kind for held in plan.queries}:",
           P + "queries.py::test_a_question_that_is_not_in_the_plan_is_not_asked"),
    Mutant("a run's new plan replaces its old one in the cap", "privacy.ledger:Ledger.register", 'if e["event"] == "plan"]', 'if e["event"] == "plan" and e["constants"]["run"] != plan.constants()["run"]]',
           P + "ledger.py::test_another_plan_of_the_same_run_is_paid_for_beside_the_first"),
    Mutant("selection does not account for the trials' reserve", "privacy.selection:SelectionPlan.stated_epsilon", "trial.attempts", "trial.steps",
           P + "selection.py::test_epsilon_counts_the_reserve_of_every_trial"),
    Mutant("batches are not cut to the plan's largest", "privacy.mechanism:PrivateGradient.draw", "self._entropy, plan.max_batch_size)", "self._entropy)",
           P + "mechanism.py::test_a_batch_is_cut_to_the_plans_largest"),
    Mutant("trials are drawn anew when their draw is gone", "train.selecting:_opened", "elif ledger.attempts(plan):", "elif False:",
           S + "test_a_selection_that_is_not_the_one_that_was_begun_is_refused"),
    Mutant("the first trial comes before the selection's line", "train.selecting:_opened", "if not ledger.attempts(plan):", "if progress.done and not ledger.attempts(plan):",
           S + "test_the_trial_with_the_largest_score_stays_and_a_loser_goes_before_the_next_begins"),
    Mutant("the worst trial is kept", "train.selecting:_after_one_more", "score > progress.score", "score < progress.score",
           S + "test_the_trial_with_the_largest_score_stays_and_a_loser_goes_before_the_next_begins"),
    Mutant("losers are not deleted", "train.selecting:_after_one_more", "if folder.is_dir() and folder.name != kept:", "if False:",
           S + "test_the_trial_with_the_largest_score_stays_and_a_loser_goes_before_the_next_begins"),
    Mutant("the number of trials stays on disk", "train.selecting:best_of_all", "shutil.rmtree(run.selection, ignore_errors=True)", "pass",
           S + "test_nothing_that_is_left_or_shown_tells_how_many_trials_there_were"),
    Mutant("a selection states the epsilon of one trial", "privacy.selection:SelectionPlan.stated_epsilon", "return epsilon_of_selection(*settings, self.mean_trials, trial.beside, adjacency)", "return trial.stated_epsilon(adjacency)",
           S + "test_a_mean_that_was_lowered_with_its_digest_fails_by_its_epsilon"),
    Mutant("replacing one costs a selection what adding one does", "privacy.accounting:epsilon_of_selection", "if adjacency is Adjacency.ADD_OR_REMOVE_ONE:", "if True:",
           P + "selection.py::test_replacing_one_is_removing_one_and_adding_another"),
    Mutant("an answer is used with another backbone", "train.vouching:vouched", "require_same_backbone(backbone, facts, run)", "pass",
           "tests/train/test_asking.py::test_an_answer_that_the_ledger_or_the_plan_does_not_vouch_for_is_refused"),
    Mutant("unit losses divided by the mean loss of their pass", "train.algorithm_1:algorithm_1", "mechanism.accumulate(of_units, ", "mechanism.accumulate(of_units / of_units.detach().nanmean().clamp(min=1e-6), ",
           T + "test_one_record_more_changes_no_sum_by_more_than_C"),
    Mutant("resume counts lines instead of checking the head", "train.vouching:vouched", "if head is None or not ledger.contains(Head(*head)):", "if ledger.head.seq < head[0]:",
           T + "test_a_ledger_written_anew_with_as_many_attempts_is_refused"),
    Mutant("refusal tells the exact number of records", "data.ingest:ingest", 'f"Fewer than {MIN_READABLE} images can be read with', 'f"Only {len(source) - len(problems)} of {len(source)} images can be read with',
           "tests/data/test_image_ingest.py::test_other_refusals"),
    Mutant("allow-list of files matches prefixes", "verifying:_may_be_released", "ALLOWED_FILES.fullmatch(name)", "ALLOWED_FILES.match(name)",
           "tests/test_verifying.py::test_changed_files_fail"),
    Mutant("unknown constants of a plan are ignored", "privacy.plan:PrivacyPlan.from_constants", 'cls(**{**constants, "queries": asked})', 'cls(**{**{key: value for key, value in constants.items() if key in cls.__dataclass_fields__}, "queries": asked})',
           P + "plan.py::test_constants_that_no_plan_has_are_refused"),
    # --- selection, warm start, answers, and what a release holds of them
    Mutant("a selection can be finished once more", "train.selecting:_opened", "if ledger.attempts(plan) == plan.attempts and", "if False and",
           S + "test_a_copy_from_before_the_end_gives_no_second_result"),
    Mutant("a selection is never closed", "train.selecting:best_of_all", "if ledger.attempts(plan) < plan.attempts:", "if False:",
           S + "test_two_folders_with_draws_of_their_own_give_one_result"),
    Mutant("trials go on from each other's weights", "train.selecting:_trial", "backbone = load_backbone(config.backbone, chosen_device(config.runtime.device))", 'backbone = _trial.__dict__.setdefault("kept", load_backbone(config.backbone, chosen_device(config.runtime.device)))',
           S + "test_trials_are_independent_runs_from_the_public_backbone"),
    Mutant("all trials have the same noise", "train.selecting:_trial", "plan.trial, SystemEntropy()", f"plan.trial, {SEEDED}",
           S + "test_trials_are_independent_runs_from_the_public_backbone"),
    Mutant("the number of trials from a seed", "train.selecting:select", "backbone.digest, SystemEntropy())", f"backbone.digest, {SEEDED})",
           S + "test_the_number_of_trials_comes_from_the_systems_entropy"),
    Mutant("images are read again between trials", "train.selecting:select", "if run.trials.exists() and not run.latents.exists():", "if False:",
           S + "test_images_are_not_read_again_between_trials"),
    Mutant("a trial is tuned with the candidate of its number", "train.selecting:_trial_run", "[progress.candidates[number]]", "[number % len(config.selection.learning_rates)]",
           S + "test_the_trial_with_the_largest_score_stays_and_a_loser_goes_before_the_next_begins"),
    Mutant("a lost score counts as 0", "train.selecting:_after_one_more", "score = _trial(here, plan, latents)", "score = _trial(here, plan, latents) or 0.0",
           S + "test_the_trial_with_the_largest_score_stays_and_a_loser_goes_before_the_next_begins"),
    Mutant("an epsilon that is no number is 0", "privacy.accounting:_accountant_of_selection", "if noise_multiplier < SMALLEST_NOISE:", "if noise_multiplier == 0:",
           P + "selection.py::test_without_noise_worth_the_name_nothing_is_promised"),
    Mutant("a start from exact class means", "train.starting:ask_and_start", KNOWN, EXACT,
           W + "test_a_run_starts_once_from_the_answers_that_it_paid_for"),
    Mutant("a start is made again on resume", "train.starting:ask_and_start", " and tuner.updates == 0:", ":",
           W + "test_a_run_starts_once_from_the_answers_that_it_paid_for"),
    Mutant("a start moves more than the embedder", "train.warm_start:lesson_of", "if is_of_embedder(name, names)", "if name",
           W + "test_nothing_moves_but_the_embedder_and_the_null_row_stays"),
    Mutant("a distance from a mean is not cut", "privacy.queries:spread_sums", "r.norm(dim=1, keepdim=True).clamp(min=question.clip_norm)", "question.clip_norm",
           Q + "the_bounds_are_reached"),
    Mutant("every image of a group counts whole in a spread", "privacy.queries:spread_sums", "r * shares[of_class][:, None]", "r",
           Q + "a_group_counts_as_one_unit_however_many_images_it_has"),
    Mutant("entries off the diagonal count twice", "privacy.queries:_weights", ".double().sqrt()", ".double()",
           Q + "a_symmetric_matrix_as_a_vector_keeps_its_norm_and_comes_back"),
    Mutant("parts are taken for classes", "privacy.queries:spread_sums", "rows.labels // parts == label", "rows.labels == label",
           Q + "spreads_around_parts_add_up_to_their_class"),
    Mutant("a spread is answered with class counts", "train.asking:_total", "raise ValueError", "return class_counts(places, classes)  # ",
           A + "test_no_question_is_answered_with_the_sum_of_another"),
    Mutant("answers noised from a seed", "train.finetune:finetune", "ledger, latents, SystemEntropy(), on", f"ledger, latents, {SEEDED}, on",
           A + "test_answers_are_noised_by_the_systems_entropy"),
    Mutant("images that were not read count in an answer", "train.asking:places_of", "latents.labels[records], weights)", "latents.labels[records], torch.ones_like(weights))",
           A + "test_groups_and_null_records_count_as_the_proof_says"),
    Mutant("an answer to another question is used", "train.asking:read_answer", '"question": question.constants(), ', "",
           A + "test_an_answer_that_the_ledger_or_the_plan_does_not_vouch_for_is_refused"),
    Mutant("a lost histogram is forgotten", "train.asking:answered", "if answer is None:", "if False:",
           A + "test_a_lost_histogram_is_not_replaced_by_equal_shares"),
    Mutant("rounds of votes are paid for once", "privacy.plan:asking_alone", "sum(question.attempts for", "sum(1 for",
           PE + "epsilon_is_that_of_as_many_gaussians_as_may_be_asked"),
    Mutant("a round that was answered is asked again", "train.asking:ask_once", "if kept is not None:", "if False:",
           PE + "an_answered_round_is_not_paid_for_again"),
    Mutant("votes counted before they are charged", "privacy.queries:ask", "ledger.charge_query(plan, question)\n    summed,", "summed, _ = total(), ledger.charge_query(plan, question)\n    summed,",
           PE + "a_round_is_charged_before_its_votes_are_counted"),
    Mutant("the reserve of portraits is not paid for", "privacy.plan:asking_alone", "sum(question.attempts for", "sum(question.answers for",
           POR + "epsilon_is_that_of_as_many_gaussians_as_may_be_asked"),
    Mutant("portraits noised from a seed", "baselines.portraits:portraits", "config, backbone, SystemEntropy())", f"config, backbone, {SEEDED})",
           POR + "noise_is_the_systems_and_as_large_as_the_plan_says"),
    Mutant("portraits of a run noised from a seed", "train.portraying:portray", "backbone, SystemEntropy())", f"backbone, {SEEDED})",
           RUN + "noise_is_the_systems"),
    Mutant("charged for what does not fit into memory", "train.asking:require_memory", "if free is not None and ALLOCATOR * needed > free:", "if False:",
           RUN + "what_does_not_fit_into_memory_is_refused_before_the_charge"),
    Mutant("a reserve that is not the plan's", "run:questions_of", "parts=parts, reserve=reserve", "parts=parts, reserve=0",
           POR + "the_reserve_of_a_runs_own_questions_is_the_configs"),
    Mutant("an image votes in every class", "baselines.evolution:choices", "chosen[voters] = running[nearest(features[voters],", "chosen[finite] = running[nearest(features[finite],",
           "tests/baselines/test_evolution.py::test_the_loop_has_something_to_say"),
    Mutant("a start that nobody paid for is verified", "verifying:_start_is_paid_for", "return asked or not", "return True or not",
           V + "test_a_start_from_class_means_needs_a_plan_that_asked_for_them"),
    Mutant("bytes behind the pixels of an image", "scanning.pictures:_is_one_stream", " and not stream.unused_data", "",
           R + "[data in an image, behind its pixels, rehashed]"),
    Mutant("rows below the last of an image", "scanning.pictures:_is_one_stream", " and found == holds", "",
           R + "[data in an image, below its last row, rehashed]"),
]  # fmt: skip


def apply(mutant: Mutant) -> None:
    """Recompile the function with the defect, in its own module."""
    module_name, qualified = mutant.place.split(":")
    module = importlib.import_module(f"dpldm.{module_name}")
    *owners, leaf = qualified.split(".")
    owner: Any = module
    for name in owners:
        owner = getattr(owner, name)
    raw = inspect.getattr_static(owner, leaf)
    source = textwrap.dedent(inspect.getsource(getattr(owner, leaf)))
    if source.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.old!r} stands {source.count(mutant.old)} times in {mutant.place}")
    names: dict[str, Any] = {}
    exec(compile(source.replace(mutant.old, mutant.new), mutant.place, "exec"), vars(module), names)
    made = names[leaf]
    if not owners:  # others may have imported the function by name, or keep it in a table
        for known in list(sys.modules.values()):
            if getattr(known, leaf, None) is raw:
                setattr(known, leaf, made)
        for table in [value for value in vars(module).values() if isinstance(value, dict)]:
            table.update({key: made for key, value in table.items() if value is raw})
    setattr(owner, leaf, made)


def judge(mutant: Mutant, verdict: Any) -> None:
    """In a child: the verdict on one mutant."""
    import pytest

    class Witness:
        failures: list[str] = []  # noqa: RUF012 (one child, one mutant)

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                self.failures.append(str(report.longrepr))

    apply(mutant)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", mutant.test], plugins=[Witness()])
    if code == pytest.ExitCode.OK:
        verdict.send((SURVIVED, ""))
    elif Witness.failures and any(sign in Witness.failures[0] for sign in BY_ASSERTION):
        verdict.send((KILLED, ""))
    else:
        last = Witness.failures[0].strip().splitlines()[-1] if Witness.failures else f"pytest ended with {code}"
        verdict.send((CRASHED, last))


def run(mutants: Iterable[Mutant]) -> int:
    """Judge all, print a line each, return the number that was not killed."""
    import dpldm.train.finetune  # noqa: F401 (once, so that every child starts with it)

    context, alive = multiprocessing.get_context("fork"), 0
    for mutant in mutants:
        start = time.monotonic()
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=judge, args=(mutant, theirs))
        child.start()
        theirs.close()
        try:
            verdict, detail = ours.recv()
        except EOFError:
            verdict, detail = CRASHED, "the child died"
        child.join()
        alive += verdict != KILLED
        print(f"{verdict:8} {time.monotonic() - start:5.1f} s  {mutant.name}  {detail}", flush=True)
    return alive


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    wanted = parser.parse_args().names
    chosen = [mutant for mutant in MUTANTS if not wanted or mutant.name in wanted]
    alive = run(chosen)
    print(f"{len(chosen) - alive} of {len(chosen)} killed")
    return 1 if alive else 0


if __name__ == "__main__":
    raise SystemExit(main())
