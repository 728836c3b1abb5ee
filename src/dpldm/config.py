"""Settings of a run on private images: stage 3 and what comes after it."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from dpldm.section import Count, Degree, Positive, Section, Share


class DataConfig(Section):
    """The private images and their fixed, public preprocessing."""

    path: Path
    """Folder or file of private images (see `dpldm inspect`)."""
    image_size: int = Field(28, ge=8, le=1024)
    """Pixels a side of the synthetic images; every image is cropped and resized to it."""
    channels: Literal[1, 3] = 1
    """1 grey, 3 colour; must be the backbone's."""
    labels: tuple[str, ...] = ()
    """All class names, in the order of the synthetic labels. Published with the release, so they must be
    public knowledge. Empty: unconditional."""
    label_column: str | None = None
    """Column of the metadata table that holds the class; found by name when left out."""
    caption_column: str | None = None
    """Column of the metadata table that holds a text for each image, for backbones that are told captions. Captions are
    as private as the images. Blank: captions are made of labels, or empty."""
    caption_template: str = "{label}"
    """How a backbone that is told captions is told a class: a text with {label} in it, such as a photo of {label}."""
    group_column: str | None = None
    """Column that names the person or patient of each image, for privacy.unit: group. Blank: a group of its own."""
    window: tuple[int, int] | None = None
    """Values of 16-bit images that become black and white; for DICOM in the image's unit, such as Hounsfield. Blank:
    DICOM images are shown by the window that each of them names, other 16-bit images cannot be read."""
    crop: Literal["center", "none"] = "center"
    """How images that are not square are made square: centre crop, or padding."""
    test_path: Path | None = None
    """Real images for evaluation, never used in training. Accuracy on them is INTERNAL."""

    @field_validator("labels")
    @classmethod
    def _labels_are_names(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) < len(labels):
            raise ValueError("name each class once")
        if not all(label.strip() for label in labels):
            raise ValueError("a class has an empty name: give its images a label, or take them out")
        if any("\ud800" <= letter <= "\udfff" for label in labels for letter in label):
            raise ValueError("the name of a class is not UTF-8: rename its folder")
        return labels

    @field_validator("caption_template")
    @classmethod
    def _template_has_a_place(cls, template: str) -> str:
        if "{label}" not in template:
            raise ValueError("write {label} where the name of the class goes")
        return template

    @model_validator(mode="after")
    def _one_condition(self) -> Self:
        if self.caption_column is not None and self.labels:
            raise ValueError(
                "data.caption_column and data.labels: an image is told by one of them, leave the other out"
            )
        return self

    def caption_of(self, label: str) -> str:
        """What a backbone that is told captions is told about a class."""
        return self.caption_template.replace("{label}", label)

    @field_validator("window")
    @classmethod
    def _window_is_open(cls, window: tuple[int, int] | None) -> tuple[int, int] | None:
        if window is not None and not window[0] < window[1]:
            raise ValueError("the value that becomes black must be below the one that becomes white")
        return window


class PrivacyConfig(Section):
    """The guarantee. Changing anything here changes the plan."""

    dataset_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the private data set in the ledger. One set, one name, for ever, also when images are added."""
    unit: Literal["image", "group"] = "image"
    """Whom the promise protects: one image, or all images of one group (person, patient; see data.group_column)."""
    max_images_per_group: Count = 1
    """m: a group keeps at most so many images, chosen by a rule that sees that group alone. For unit: group."""
    records: int | None = None
    """Public size of the data set: number of images (of groups, for unit: group), rounded DOWN by you. It must be
    declared because the exact count is itself private."""
    epsilon: float = 10.0
    """Budget of the run (add or remove one image): 1 is strong, 10 is weak."""
    delta: float = 1e-5
    """Must be below 1/records."""
    expected_batch_size: int | None = None
    """L: mean size of a Poisson batch, the constant every clipped sum is divided by. Default: records / 8, at
    most 4,096."""
    steps: Count = 150
    """T: updates."""
    reserve_steps: int | None = None
    """R: attempts that crashes may waste, calibrated for from the start. Default: 2 % of the steps, at least 5."""
    max_grad_norm: Positive = 1e-3
    """C: clip norm. Updates are in units of C, so at small C every gradient is simply normalised."""
    draws_per_example: Count = 1
    """K: noise and timestep draws per example and step, averaged before clipping: K times the work, no privacy
    cost."""
    max_batch_size: Count | None = None
    """Largest batch: a larger Poisson draw is cut to it, which bounds time and memory. Must hardly ever happen, and is
    accounted for. Needs most_records."""
    most_records: Count | None = None
    """Public upper bound of the number of images, only for max_batch_size. A larger data set is refused."""
    clipping: Literal["flat", "automatic"] = "flat"
    """flat: gradients longer than C are cut to C. automatic: all are scaled to almost C (AUTO-S). The same noise."""
    noise: Literal["float", "grid"] = "float"
    """grid: sums and noise are whole multiples of a small step, which leaves floating-point attacks on the noise
    nothing to work with. Costs some seconds a step per million parameters, and no privacy or quality."""
    histogram_noise: float | None = None
    """Standard deviation of the noise on a class histogram, asked once before tuning: synthetic classes are then as
    frequent as it says, if sampling.label_counts is left out. Part of epsilon; 20 to 50 costs little. Blank: not
    asked."""
    class_means_noise: float | None = None
    """Noise multiplier of the mean latent of each class, asked once before tuning and kept in the run's folder. Part of
    epsilon. Blank: not asked."""
    public_classes_noise: float | None = None
    """Standard deviation of the noise on how many images of each class resemble each public class of the backbone,
    asked once before tuning. The network is then told both classes of an image, and synthetic images are drawn for the
    pairs that the answer shows. Part of epsilon; 10 to 20 costs little. Blank: public classes are not used."""
    class_parts: int = Field(1, ge=1)
    """Parts of each class whose means are asked for apart (class_means_noise; method: portraits): an image belongs to
    one by which of the backbone's own classes it resembles, merged to this number. 64 suits 60,000 records; 1 does for
    a few thousand."""
    class_means_clip: Positive | None = None
    """R: norm to which latents are cut before their means are asked for. Default: the root of the number of their
    entries."""
    class_spreads_noise: float | None = None
    """Noise multiplier of the covariance of the latents of each class around its noised mean, asked once after
    class_means_noise: together they are a portrait of each class, to start tuning from. Part of epsilon. Blank: not
    asked."""
    class_spreads_clip: Positive | None = None
    """R: norm to which distances from a class's mean are cut before their covariance is asked for. Default: three
    quarters of the root of the number of a latent's entries."""
    query_reserve: int = Field(2, ge=0, le=100)
    """Further attempts at each question above that a crash in the seconds between its charge and its answer may waste;
    all are paid for from the start. With 0 in place of 2, the same epsilon is reached with 1 / sqrt(3) of the noise,
    and such a crash ends the run, its budget spent."""
    ledger: Path | None = None
    """Ledger file. Default: ledgers/DATASET_ID.jsonl in the account's data folder, the same for every output
    folder; beside the runs for a public benchmark."""
    cap: tuple[Positive, Positive] | None = None
    """Total (epsilon, delta) of all runs ever on this data set; fixed when the ledger is created. Default: the first
    run's own, so that a second run is refused."""
    public_benchmark: bool = False
    """The images are published already (MNIST and the like): no cap, and every report says so."""

    @field_validator("ledger")
    @classmethod
    def _ledger_is_one_place(cls, ledger: Path | None) -> Path | None:
        if ledger is not None and not ledger.is_absolute():
            raise ValueError("give a path from the root, so that it is the same ledger from every folder")
        return ledger

    @model_validator(mode="after")
    def _images_belong_to_groups(self) -> Self:
        if self.unit == "image" and self.max_images_per_group > 1:
            raise ValueError("privacy.max_images_per_group is for privacy.unit: group: set that, or leave it out")
        return self

    @model_validator(mode="after")
    def _spreads_have_centres(self) -> Self:
        if self.class_spreads_noise is not None and self.class_means_noise is None:
            raise ValueError("privacy.class_spreads_noise is about noised means: set privacy.class_means_noise too")
        return self

    @model_validator(mode="after")
    def _cap_holds_this_run(self) -> Self:
        if self.cap is not None and not (self.epsilon <= self.cap[0] and self.delta <= self.cap[1]):
            raise ValueError("privacy.cap is below this run's own epsilon or delta: raise it, or lower them")
        return self


OF_DIFFUSION = (
    *("expected_batch_size", "steps", "reserve_steps", "max_grad_norm", "draws_per_example", "max_batch_size"),
    *("most_records", "clipping", "histogram_noise", "class_means_noise", "public_classes_noise"),
    "class_spreads_noise",
)
"""Settings of privacy that are about gradients, or about answers beside them."""
OF_PORTRAITS = ("class_parts", "class_means_clip", "class_spreads_clip", "query_reserve")
"""Settings of privacy that are about the questions of `method: portraits`."""


class OptimizerConfig(Section):
    """What is minimised, and Adam on noised gradients in units of C. Nothing here costs privacy."""

    learning_rate: Positive = 1e-3
    """Step size of Adam."""
    warmup_steps: int = Field(5, ge=0)
    """Steps of linear warm-up."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after warm-up: constant, or down to 0 at the last step."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    noise_correction: bool = False
    """Leave the known variance of the noise out of Adam's second moment (DP-AdamBC)."""
    warm_start_steps: int = Field(0, ge=0)
    """Steps of training before the first update, on noised answers alone: the embedder on the class means
    (privacy.class_means_noise), or all that is tuned on portraits of the classes (privacy.class_spreads_noise too)."""
    average: Literal["ema", "uniform"] = "ema"
    """What is sampled and released: a moving average of the weights, or the mean of all updates' weights."""
    ema_decay: float = Field(0.95, ge=0, lt=1)
    """Decay of the moving average."""
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """Probability of training an example with the null label, for guidance."""
    timesteps: tuple[tuple[Share, Share, Positive], ...] = ((0.0, 1.0, 1.0),)
    """Parts of the noise schedule and how often each is trained on: [[from, to, share], ...], where 0 is the clean end
    and 1 pure noise."""
    mirror: bool = False
    """Show about half of the draws of an image left to right, for backbones of pixels. Draws are averaged before
    clipping, so it costs no privacy; not for digits and letters."""
    min_snr: Positive | None = None
    """gamma of min-SNR weighting (Hang et al. 2023), 5 in the paper. Clipping undoes a weight of a whole example, so it
    matters for draws_per_example above 1. Blank: all timesteps weigh the same."""

    @field_validator("timesteps")
    @classmethod
    def _parts_are_not_empty(cls, parts: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        if not parts or any(not start < end for start, end, _ in parts):
            raise ValueError("each part is [from, to, share] with from below to")
        return parts


class SelectionConfig(Section):
    """Several learning rates tried on the private images, the best kept, within one budget (docs/privacy.md).

    What public images can tell (`dpldm rehearse`) costs nothing; this is for what they cannot.
    """

    learning_rates: tuple[Positive, ...] = ()
    """Candidates for optimizer.learning_rate. Each trial tunes anew with one of them, drawn at random. Empty: no
    selection, and optimizer.learning_rate is used."""
    mean_trials: float = Field(5.0, ge=1, le=1000)
    """Mean of the number of trials, which is drawn at random and stays secret: time grows with it, and noise a
    little."""
    score_noise: float = 20.0
    """Standard deviation of the noise on each trial's score, a sum over all units of values between 0 and 1. Part of
    epsilon."""

    @field_validator("learning_rates")
    @classmethod
    def _there_is_a_choice(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if len(rates) == 1 or len(set(rates)) < len(rates):
            raise ValueError("give at least two learning rates, each once, or none")
        return rates


class SamplingConfig(Section):
    """How synthetic images are drawn; post-processing, no privacy cost."""

    count: Count = 60_000
    """Synthetic images, equally many per class unless label_counts or a class histogram says otherwise."""
    sampler: Literal["ddim", "dpmsolver++"] = "dpmsolver++"
    """Solver of the reverse process."""
    steps: int = Field(20, ge=1, le=1000)
    """Solver steps."""
    eta: float = Field(0.0, ge=0, le=1)
    """Stochasticity of DDIM: 0 deterministic, 1 ancestral."""
    guidance: float = Field(1.0, ge=0)
    """Classifier-free guidance: 1 is none, above 1 sharpens classes at twice the work."""
    keep: float = Field(1.0, gt=0, le=1)
    """Share of the drawn images that is kept: those whose class is plainest to a classifier trained on the others.
    More are drawn, so that `count` are left. 1 keeps all."""
    label_counts: tuple[int, ...] | None = None
    """Images per class, in the order of data.labels, instead of equal shares, or of the shares of
    privacy.histogram_noise. Must not come from the data."""
    prompts: Path | None = None
    """Public text file with a prompt a line, for data.caption_column: image after image is drawn for the next one. It
    must not come from the private captions, nor lie beside them."""
    seed: int = Field(0, ge=0)
    """Seed of the starting noise. Public."""
    batch_size: Count = 500
    """Images drawn together."""


OF_SOLVERS = ("sampler", "steps", "eta", "guidance", "prompts")
"""Settings of sampling that are about a reverse process."""


class EvaluationConfig(Section):
    """Internal measurements against data.test_path."""

    protocol: Literal["full", "screen", "quick", "paper-colour", "dpimagebench", "dpimagebench-cifar"] = "full"
    """full: 50,000 + 10,000 synthetic, CNN, MLP and logistic regression, 50 epochs; screen: 10,000, CNN, 10 epochs;
    quick: what there is, CNN; paper-colour: as full, but ResNet-9 and WRN-40-4, 10 epochs; dpimagebench: 55,000 +
    5,000, ResNet-110, WRN-40-4 and ResNeXt-29, 50 epochs; dpimagebench-cifar: its larger ones, 200 epochs."""
    images: Count | None = None
    """Fewer synthetic images than the protocol's, for a machine that is too slow for it. The result then stands under
    the protocol's name with `-reduced`, beside no published figure. Blank: the protocol's."""
    epochs: Count | None = None
    """Fewer epochs than the protocol's, as with `images`. Blank: the protocol's."""
    seeds: tuple[int, ...] = (0,)
    """One classifier of each kind per seed."""
    extractor: Literal["efficientnet-lite0", "inception-v3"] = "efficientnet-lite0"
    """Features of KID and Fréchet distance."""
    inception_weights: Path | None = None
    """Local weights file for inception-v3."""


class EvolutionConfig(Section):
    """`dpldm baseline pe`: Private Evolution over the backbone as it is. Nothing is tuned."""

    rounds: int = Field(12, ge=1, le=1000)
    """T: rounds of votes, each charged. More rounds come nearer to the private images, with more noise in each."""
    candidates: Count = 1000
    """Images that are voted on in a round, equally many per class. Fewer get more votes each, above the same noise."""
    threshold: float = Field(2.0, ge=0, allow_inf_nan=False)
    """H, in standard deviations of the noise: what is taken off every count of votes; what is left is a
    candidate's chance to be varied."""
    degrees: tuple[Degree, Degree] = (0.9, 0.25)
    """How far a candidate is varied, in the first and in the last round: the share of the way back to noise."""
    features: Literal["encoder", "efficientnet-lite0"] = "encoder"
    """In what an image resembles another: latents of the backbone's encoder, or features of a public network (extra
    features)."""


class RuntimeConfig(Section):
    """Speed and places. Nothing here changes the guarantee."""

    output: Path = Path("runs")
    """Folder of all runs."""
    physical_batch_size: Count | Literal["auto"] = 128
    """Examples per forward pass; memory only. auto: as many as fit into the free memory, by what two passes on random
    numbers take."""
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    """How weights that are not tuned are held, and what layers compute in. bfloat16 halves them; gradients become
    coarser, the guarantee stays. Fast on GPUs and processors that have it."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    tiling: bool = False
    """Encode and decode images piece by piece if they are larger than those the autoencoder was trained on."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks compute: auto is CUDA where there is one. Noise is always drawn and added on the CPU."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of torch. Default: all cores."""


class RunConfig(Section):
    """One run: a data set, a backbone, a plan."""

    method: Literal["diffusion", "portraits"] = "diffusion"
    """diffusion: a latent diffusion model is tuned by noised gradients (the paper's). portraits: all of epsilon goes
    into noised means and covariances of the latents of each class, and images are drawn from these Gaussians; nothing
    is tuned, and it takes minutes. For classes, and latents of at most 1,024 numbers."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the run's folder."""
    licence: str = Field("unknown", pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")
    """Licence under which the release is to be published, as data hubs write it (cc-by-4.0, apache-2.0, other). unknown
    says that you have not decided, so that nobody may use it yet."""
    data: DataConfig
    backbone: str = "grey32"
    """A bundled backbone, a directory made by `dpldm pretrain`, or a diffusers pipeline (a directory, or a name on the
    Hugging Face hub) of a kind that docs/backbones.md lists."""
    trainable: str = "attention"
    """What is tuned: attention, attention-from-N, attention-in, -mid or -out, attn1, attn2, resblocks, norms, condition
    (nothing but the embedder), all, a regular expression; or lora-R, adapters of rank R to all matrices of attention,
    and lora-R:CHOICE, to those of another choice. See tune_embedder; docs/backbones.md has the choices of each kind."""
    tune_embedder: bool = True
    """Tune the conditioning embedder as well, as the paper does: classes are told apart by it alone. Of a backbone that
    is told captions, the attention of its text encoder."""
    privacy: PrivacyConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    selection: SelectionConfig = SelectionConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    evolution: EvolutionConfig = EvolutionConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _portraits_are_of_classes(self) -> Self:
        if self.method == "portraits" and (not self.data.labels or self.data.caption_column):
            raise ValueError("method: portraits is for classes: declare data.labels, or choose method: diffusion")
        return self

    @model_validator(mode="after")
    def _portraits_tune_nothing(self) -> Self:
        if self.method == "portraits" and (idle := self._idle_settings()):
            raise ValueError(
                f"{', '.join(idle)}: not for method: portraits, which tunes nothing. Leave it out, also of what this "
                "config extends, or set method: diffusion"
            )
        return self

    def _idle_settings(self) -> list[str]:
        """Settings other than their defaults that `method: portraits` does not heed, by their full names."""
        sections = {
            "privacy": (self.privacy, PrivacyConfig(dataset_id=self.privacy.dataset_id), OF_DIFFUSION),
            "optimizer": (self.optimizer, OptimizerConfig(), OptimizerConfig.model_fields),
            "selection": (self.selection, SelectionConfig(), SelectionConfig.model_fields),
            "sampling": (self.sampling, SamplingConfig(), OF_SOLVERS),
        }
        tuned = {"trainable": "attention", "tune_embedder": True}
        return [name for name, usual in tuned.items() if getattr(self, name) != usual] + [
            f"{section}.{name}"
            for section, (mine, usual, names) in sections.items()
            for name in names
            if getattr(mine, name) != getattr(usual, name)
        ]

    def heeded(self) -> dict[str, Any]:
        """The settings as plain values, without those that `method: portraits` does not heed."""
        settings = self.model_dump(mode="json")
        if self.method == "portraits":
            for name in ("trainable", "tune_embedder", "optimizer", "selection"):
                del settings[name]
            for section, names in (("privacy", OF_DIFFUSION), ("sampling", OF_SOLVERS)):
                for name in names:
                    del settings[section][name]
        return settings

    @model_validator(mode="after")
    def _settings_of_a_question_have_it(self) -> Self:
        privacy, portraits = self.privacy, self.method == "portraits"
        means, spreads = privacy.class_means_noise is not None, privacy.class_spreads_noise is not None
        needed = {
            "class_means_clip": (privacy.class_means_clip is not None, means, "class_means_noise"),
            "class_spreads_clip": (privacy.class_spreads_clip is not None, spreads, "class_spreads_noise"),
            "class_parts": (privacy.class_parts > 1, means, "class_means_noise"),
        }
        for name, (given, asked, question) in needed.items():
            if given and not (asked or portraits):
                raise ValueError(
                    f"privacy.{name} is for privacy.{question} or method: portraits: set one of them, or leave it out"
                )
        return self

    @model_validator(mode="after")
    def _groups_have_a_column(self) -> Self:
        if self.privacy.unit == "group" and self.data.group_column is None:
            raise ValueError("privacy.unit: group needs data.group_column, which names the person of each image")
        return self

    @model_validator(mode="after")
    def _questions_about_classes_have_classes(self) -> Self:
        privacy = self.privacy
        asked = (privacy.histogram_noise, privacy.class_means_noise, privacy.public_classes_noise)
        if any(noise is not None for noise in asked) and not self.data.labels:
            raise ValueError(
                "privacy.histogram_noise, privacy.class_means_noise and privacy.public_classes_noise need the classes "
                "that data.labels declares"
            )
        return self

    @model_validator(mode="after")
    def _public_classes_are_told(self) -> Self:
        told = self.privacy.public_classes_noise is not None
        if told and (self.optimizer.warm_start_steps or not self.tune_embedder):
            raise ValueError(
                "privacy.public_classes_noise needs tune_embedder, and optimizer.warm_start_steps does not go with it: "
                "choose one of the two"
            )
        return self

    @model_validator(mode="after")
    def _a_warm_start_has_means(self) -> Self:
        if self.optimizer.warm_start_steps and not (self.privacy.class_means_noise and self.tune_embedder):
            raise ValueError(
                "optimizer.warm_start_steps trains the embedder on noised class means: set privacy.class_means_noise "
                "and leave tune_embedder on, or leave warm_start_steps out"
            )
        return self

    @model_validator(mode="after")
    def _only_classes_can_be_plain(self) -> Self:
        if self.sampling.keep < 1 and not self.data.labels:
            raise ValueError("sampling.keep chooses by class: declare data.labels, or leave it out")
        return self

    @model_validator(mode="after")
    def _one_count_per_class(self) -> Self:
        counts, classes = self.sampling.label_counts, len(self.data.labels)
        if counts is not None and classes and (len(counts) != classes or min(counts) < 0 or not any(counts)):
            raise ValueError(
                "sampling.label_counts needs one number for each class of data.labels, none negative and one positive"
            )
        return self
