"""The shapes that every part of the engine shares.

Conventions, everywhere: images are ``(B, 3, H, W)`` float32 in [0, 1]; budgets (``eps``) and step sizes (``alpha``)
are in the same [0, 1] units; losses are per image, ``(B,)``, and are *minimised*; a batch gives the same gradient
as its images one by one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypedDict

from .verdicts import State as State
from .verdicts import Verdict as Verdict

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    Tensor = Any  # torch takes seconds and half a gigabyte to load, and who only reads a run needs none of it

Image: TypeAlias = Tensor
"""(B, 3, H, W) float32 in [0, 1]."""
Latent: TypeAlias = Tensor
"""(B, c, h, w), scaled and shifted as the noise predictor expects it."""
Term: TypeAlias = Callable[..., Tensor | Mapping[str, Tensor]]
"""A loss of the latent, and of what else a picture enters by: (B, c, h, w), ... -> (B,), or its named parts, each (B,),
which sum to it."""


class Gradient(NamedTuple):
    """What a :data:`GradFn` returns.

    ``loss`` (B,) float32; ``grad`` (B, 3, H, W) float32, d(sum of loss)/dx; ``log`` named per-image scalars (B,),
    such as each term's value and the norm of its gradient, for curves and reports.
    """

    loss: Tensor
    grad: Tensor
    log: Mapping[str, Tensor] = {}


GradFn: TypeAlias = Callable[[Image, int], Gradient]
"""(x, step index) -> :class:`Gradient`. The one seam between methods and the loop in :mod:`sifm_core.pgd`."""


@dataclass(frozen=True)
class Sampled:
    """A :data:`GradFn` in two halves: what it draws for a step, and the work that is the same at every step.

    ``draw`` (step index) gives the step's random numbers, on the CPU. ``gradient`` (x, those numbers on x's device)
    makes no random numbers, reads none on the host and copies none to the device, so that its operations can be
    recorded once and replayed (:func:`sifm_core.graphs.replayed`).
    """

    draw: Callable[[int], Sequence[Tensor]]
    gradient: Callable[..., Gradient]

    def __call__(self, x: Image, step: int) -> Gradient:
        return self.gradient(x, *(numbers.to(x.device) for numbers in self.draw(step)))


@dataclass(frozen=True)
class Step:
    """One report of progress: step ``i`` (1-based) of ``n`` of ``phase`` is done.

    ``loss`` is the mean over the batch; ``log`` holds batch means of :attr:`Gradient.log`; ``preview`` is the current
    image (B, 3, H, W) in [0, 1], or None.
    """

    phase: str
    i: int
    n: int
    loss: float | None = None
    log: Mapping[str, float] = field(default_factory=dict)
    preview: Image | None = None


OnStep: TypeAlias = Callable[[Step], None]
"""Called after every step. To stop the work, raise: the engine cleans up and lets the exception through."""

Cond: TypeAlias = Any
"""What an editor made of prompts; opaque to everyone else. Row b conditions image b."""


class Editor(ABC):
    """A text-guided diffusion editor: all that methods, purifiers, plans and doors ask of one.

    Fill in what is abstract; nothing here needs diffusers. A batch gives every image what it would get alone.
    """

    name: str
    """What the user asked for: a built-in name, a folder or a hub id."""
    family: str
    """Which methods and layer presets apply, such as "instruct-pix2pix" or "sd3"."""
    net: nn.Module
    """The noise predictor, what :func:`sifm_core.features.capture` hooks."""
    device: torch.device
    dtype: torch.dtype
    fingerprint: str
    """Hash of the configuration and the weights: part of every record's key."""
    settings: Mapping[str, Any]
    """The defaults of an edit's options, and "size", the longer side at which pictures are edited."""
    num_train_timesteps: int
    latent_shift: float | Tensor = 0.0
    latent_scale: float | Tensor = 1.0
    """`encode` returns (posterior mode - shift) * scale; where channels have their own, (1, c, 1, 1) on the device."""
    toy: int | None = None
    """Of one that knows nothing but small drawings of its own: their longer side in pixels. None: a real editor."""
    layer_presets: Mapping[str, tuple[str, ...]]
    """Named sets of module-path globs, e.g. {"deep": ("mid_block", "up_blocks.0.resnets.*")}."""
    telling: str = "mid"
    """The one of them whose features, pushed away, undid most edits: of transformers that before the middle; where the
    family was not measured, what its nearest relative's was (docs/results/beyond.md)."""
    entrances: tuple[str, ...] = ("vae",)
    """Where a picture enters: "vae", as the latent; "vlm", read by the text encoder beside the prompt (:meth:`see`)."""
    recordable = True
    """Whether an iteration's work on a GPU stays where it is and as it is, so that it may be recorded as a graph."""
    timeless: tuple[str, ...] = ()
    """Streams (:meth:`hidden`) that are a function of the latent alone, exactly: of no timestep, noise, prompt or other
    entrance. :meth:`tower` runs what they need."""

    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """Every network by name, those that read prompts as "text_encoder...": what a memory manager moves."""

    @abstractmethod
    def work_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) at which this editor edits a picture of that size: native scale, allowed multiples."""

    @abstractmethod
    def encode(self, x: Image, noise: Latent | None = None) -> Latent:
        """Posterior mode, scaled: deterministic and differentiable. x must have a size that `work_size` allows.

        With standard normal ``noise`` of the latent's shape, the posterior's draw mean + std * noise instead.
        """

    @abstractmethod
    def decode(self, z: Latent) -> Image:
        """The picture of such a latent, in [0, 1] units, not clipped: differentiable."""

    @abstractmethod
    def prepare(self, prompts: Sequence[str], x: Image | None = None) -> Cond:
        """Encode one prompt per image (cached); ``x``: the images at the working size, for encoders that see them."""

    @abstractmethod
    def blank(self, n: int) -> Cond:
        """Conditions of zeros for n images, to count what work costs."""

    @abstractmethod
    def embeddings(self, cond: Cond) -> Tensor:
        """What the text encoder makes of the prompts, (B, tokens, width)."""

    @abstractmethod
    def words(self, cond: Cond) -> Tensor:
        """Which positions of the encoded text are words of the prompt rather than padding, (B, tokens) bool."""

    @abstractmethod
    def mix(self, t: Tensor, like: Latent) -> tuple[Tensor, Tensor]:
        """The noise schedule at timesteps t (B,): z_t = signal * z + spread * noise, each (B, 1, 1, 1)."""

    @abstractmethod
    def denoise(self, z: Latent, noise: Latent, t: Tensor, cond: Cond) -> Tensor:
        """The noise predictor's output for the clean latent z noised to t (B,) int64; hides where the source enters."""

    @abstractmethod
    def target(self, z: Latent, noise: Latent, t: Tensor) -> Tensor:
        """What `denoise` was trained to predict: epsilon, v or flow; same shape as its output."""

    @abstractmethod
    def draws(self, x: Image, seed: int | Sequence[int], **options: Any) -> Sequence[Tensor]:
        """What an edit of x draws from the seeds, on the CPU."""

    @abstractmethod
    def generate(self, x: Image, cond: Cond, drawn: Sequence[Tensor], **options: Any) -> Image:
        """The attacker's edit with a gradient to x: the decoder's output in [0, 1] units, not clipped.

        ``drawn``: what :meth:`draws` gave for these options.
        """

    @abstractmethod
    def edit(
        self, x: Image, cond: Cond, *, seed: int | Sequence[int], on_step: OnStep | None = None, **options: Any
    ) -> Image:
        """The attacker's edit, without gradient; one seed per image or one for all; same seed, same bytes."""

    def join(self, conds: Sequence[Cond]) -> Cond:
        """The conditions of several batches as those of one, in their order: here, of dataclasses of tensors."""
        import torch

        if len(conds) == 1:
            return conds[0]
        columns = zip(*(vars(cond).values() for cond in conds), strict=True)
        return type(conds[0])(*map(torch.cat, columns))

    def take(self, cond: Cond, rows: Tensor) -> Cond:
        """The rows of conditions with these numbers, (n,) int64, in that order: of tensors or dataclasses of them."""
        import torch

        if isinstance(cond, torch.Tensor):
            return cond[rows]
        return type(cond)(*(column[rows] for column in vars(cond).values()))

    def rows(self, height: int, width: int) -> int:
        """How many rows of a batch the noise predictor runs at once for pictures of that working size, with gradients.

        A rule of network, size and number type alone, never of what memory happens to be free: results follow from it.
        """
        return 1

    def row_bytes(self, height: int, width: int) -> int:
        """About how much one such row keeps until its gradient is taken; 0: not known."""
        return 0

    def see(self, cond: Cond, x: Image) -> Tensor:
        """What the text encoder makes of the same prompts beside pictures x, as :meth:`embeddings`: differentiable.

        Raises EditorError where there is no entrance "vlm".
        """
        from .errors import EditorError

        raise EditorError(f"{self.name}: the text encoder sees no picture: a picture enters by {self.entrances} alone")

    def with_embeddings(self, cond: Cond, embeddings: Tensor) -> Cond:
        """The same conditions with what :meth:`see` gave: here, of dataclasses whose ``prompt`` that is."""
        return replace(cond, prompt=embeddings)

    def hidden(self, module: nn.Module, output: Any, stream: str = "") -> Any:
        """What of a module's output is the picture's hidden state: here all of it, whose first tensor counts.

        ``stream``: what a layer's name has after a colon, "blocks.3:reference": one of several that the module carries,
        such as "reference", "target" or "text". Raises LayerError for one that it does not.
        """
        if stream:
            from .errors import LayerError

            raise LayerError(f"{type(module).__name__} has no streams: leave {':' + stream!r} out")
        return output

    def tower(self, z: Latent, cond: Cond) -> Any:
        """Run `net` on what the :attr:`timeless` streams need and no more: no target, no text after the picture."""
        raise NotImplementedError

    def attention(self) -> AbstractContextManager[tuple[list[str], list[Tensor]]]:
        """Inside, the paths of the layers in which the picture attends to text, and what they attended once `net` ran.

        Each (B, heads, image positions, text positions), with a gradient. Raises EditorError where there is none.
        """
        from .errors import EditorError

        raise EditorError(
            f"{type(self.net).__name__} has no layer in which the image attends to text: choose another method"
        )

    def recomputing(self) -> AbstractContextManager[None]:
        """Inside, `net` keeps few activations and computes the others again on the way back, where it can."""
        return nullcontext()

    def reading(self) -> AbstractContextManager[None]:
        """Entered for every prompt that is new: who moves the networks brings the text encoders in here."""
        return nullcontext()


@dataclass(frozen=True)
class Case:
    """What a judge sees: the source picture, the edit of it, and the instruction; blind to method and protection.

    ``source`` and ``edited``: (3, H, W) float32 in [0, 1]. ``truth`` is opaque ground truth for judges that have it.
    """

    source: Tensor
    edited: Tensor
    prompt: str
    truth: Any = None


class Judge(Protocol):
    """Anything that answers cases. It never raises for a single case: what went wrong is the verdict's state."""

    name: str
    """"backend:model", unique within a run."""

    def judge(self, cases: Sequence[Case], *, on_step: OnStep | None = None) -> list[Verdict]:
        """One verdict per case, in order."""


@dataclass(frozen=True)
class Metric:
    """A metric's value for one pair, or None with the reason; ``definition`` names exactly what was computed."""

    value: float | None
    definition: str
    reason: str = ""


class Measured(TypedDict):
    """A :class:`Metric` as plain data."""

    value: float | None
    definition: str
    reason: str


class RecordInfo(TypedDict, total=False):
    """How a record came about, as plain data: what benchmarks and nodes write and reports read.

    What is not there was not done or is not known, as in runs of other versions, whose further words are ignored.
    """

    protection: str
    """The method; "" for none."""
    options: Mapping[str, Any]
    """The method's own settings."""
    loop: Mapping[str, Any]
    """What else was set for the protection: ``steps``, ``alpha``, ``ball`` and so on."""
    protected_on: str
    """The editor that protected; the record's ``editor`` attacked."""
    protection_key: str
    """Of the document "immunize" that holds how the perturbation was found."""
    history: Sequence[Mapping[str, float]]
    """The same where there is no such document: what was logged at each step."""
    linf: float | None
    peak_memory: Measured | None
    """In bytes, while protecting."""
    fidelity: Mapping[str, Measured]
    """The protected picture against its source."""
    purifier: str
    """What the attacker did to the picture first; "" for nothing."""
    instruction: str
    """What the picture was protected against; the record's ``prompt`` is what the attacker asked."""
    prompt_distance: Measured
    """How far these two are apart for the attacked editor."""
    edit_seed: int
    edit_options: Mapping[str, Any]
    failed: str
    """Why something of the record is missing."""


@dataclass(frozen=True)
class Record:
    """One attacked picture with everything that was measured on it: a row of a run.

    ``method`` is "clean" for the unprotected picture. ``verdicts`` are the judges' answers to (source, edited, prompt);
    ``metrics`` compare the edit with the clean edit of the same seed (empty for the clean row).
    ``source``, ``protected``, ``edited`` are sha256 ids of pictures in the run's store.
    """

    key: str
    image: str
    category: str
    prompt: str
    prompt_kind: str
    editor: str
    method: str
    seed: int
    eps: float
    source: str
    protected: str
    edited: str
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    info: RecordInfo = field(default_factory=RecordInfo)
