"""Score-SDE's NCSN++ class in torch, written for the tests from the published description of layout and conventions.

The names of modules and parameters are the published ones, in the published order of registration.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def norm(channels):
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def conv(inputs, outputs, size=3, **options):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def fir(x, pad, stride=1, gain=1.0):
    row = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = (torch.outer(row, row) / 64 * gain).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(x, (*pad, *pad)), kernel, stride=stride, groups=x.shape[1])


def up(x, smooth):
    if not smooth:
        return F.interpolate(x, scale_factor=2, mode="nearest")
    b, c, h, w = x.shape
    z = torch.zeros(b, c, 2 * h, 2 * w)
    z[:, :, ::2, ::2] = x
    return fir(z, (2, 1), gain=4.0)


def down(x, smooth):
    return fir(x, (1, 1), stride=2) if smooth else F.avg_pool2d(x, 2)


class GaussianFourierProjection(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.W = nn.Parameter(16 * torch.randn(features), requires_grad=False)

    def forward(self, x):
        angles = x[:, None] * self.W[None, :] * 2 * np.pi
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class NIN(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.W = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.b = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.einsum("bchw,cd->bdhw", x, self.W) + self.b[None, :, None, None]


class AttnBlockpp(nn.Module):
    def __init__(self, channels, rescale):
        super().__init__()
        self.GroupNorm_0 = norm(channels)
        for i in range(4):
            setattr(self, f"NIN_{i}", NIN(channels, channels))
        self.rescale = rescale

    def forward(self, x):
        b, c, h, w = x.shape
        n = self.GroupNorm_0(x)
        q, k, v = (getattr(self, f"NIN_{i}")(n).reshape(b, c, h * w) for i in range(3))
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / c**0.5, dim=-1)
        out = x + self.NIN_3(torch.einsum("bij,bcj->bci", weights, v).reshape(b, c, h, w))
        return out / 2**0.5 if self.rescale else out


class AttnBlock(AttnBlockpp):
    pass


class ResnetBlockBigGANpp(nn.Module):
    def __init__(self, inputs, outputs, temb, rescale, resample=None):
        super().__init__()
        self.GroupNorm_0 = norm(inputs)
        self.Conv_0 = conv(inputs, outputs)
        self.Dense_0 = nn.Linear(temb, outputs)
        self.GroupNorm_1 = norm(outputs)
        self.Conv_1 = conv(outputs, outputs)
        if inputs != outputs or resample:
            self.shortcut(inputs, outputs)
        self.rescale, self.resample = rescale, resample or (lambda x: x)

    def shortcut(self, inputs, outputs):
        self.Conv_2 = conv(inputs, outputs, 1)

    def forward(self, x, temb):
        h = self.Conv_0(self.resample(F.silu(self.GroupNorm_0(x))))
        x = self.resample(x)
        h = h + self.Dense_0(F.silu(temb))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        for name in ("Conv_2", "NIN_0"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return (x + h) / 2**0.5 if self.rescale else x + h


class ResnetBlockDDPMpp(ResnetBlockBigGANpp):
    def shortcut(self, inputs, outputs):
        self.NIN_0 = NIN(inputs, outputs)


class ResnetBlockDDPM(ResnetBlockDDPMpp):
    pass


class Combine(nn.Module):
    def __init__(self, inputs, outputs, method):
        super().__init__()
        self.Conv_0 = conv(inputs, outputs, 1)
        self.method = method

    def forward(self, x, y):
        h = self.Conv_0(x)
        return h + y if self.method == "sum" else torch.cat([h, y], dim=1)


class Downsample(nn.Module):
    def __init__(self, inputs, outputs, smooth):
        super().__init__()
        setattr(self, "Conv2d_0" if smooth else "Conv_0", nn.Conv2d(inputs, outputs, 3, stride=2))
        self.smooth = smooth

    def forward(self, x):
        if self.smooth:
            return self.Conv2d_0(fir(x, (2, 2)))
        return self.Conv_0(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.Conv_0 = conv(inputs, outputs)

    def forward(self, x):
        return self.Conv_0(up(x, False))


class Network(nn.Module):
    """`flax_order`: class names in the order in which the JAX code makes its modules, those without parameters too."""

    def __init__(self, size, nf=16, ch_mult=(1, 2), blocks=1, attention=(8,), smooth=False, kind="biggan",
                 progressive="none", progressive_input="none", combine="sum", fourier=False, rescale=True,
                 old_names=False, levels=0, vp=False):  # fmt: skip
        super().__init__()
        self.__dict__.update({k: v for k, v in locals().items() if k not in ("self", "__class__")})
        names = (ResnetBlockDDPM, AttnBlock) if old_names else (ResnetBlockDDPMpp, AttnBlockpp)
        res, attn = names if kind == "ddpm" else (ResnetBlockBigGANpp, AttnBlockpp)
        temb, modules, self.flax_order = 4 * nf, [], []
        levels_of = np.exp(np.linspace(np.log(348.0), np.log(0.01), levels or 10))
        self.register_buffer("sigmas", torch.tensor(levels_of))
        self.ve = bool(levels) or fourier and not vp

        def add(module):
            modules.append(module)
            self.flax_order.append((type(module).__name__, module))
            return module

        def resampled(width, cls, function):
            if kind == "biggan":
                add(res(width, width, temb, rescale, lambda x: function(x, smooth)))
            else:
                add(cls(width, width, smooth) if cls is Downsample else cls(width, width))

        if fourier:
            add(GaussianFourierProjection(nf))
        add(nn.Linear(2 * nf if fourier else nf, temb))
        add(nn.Linear(temb, temb))
        add(conv(3, nf))
        widths, ch, image = [nf], nf, 3
        for level, mult in enumerate(ch_mult):
            for _ in range(blocks):
                add(res(ch, nf * mult, temb, rescale))
                ch = nf * mult
                if size >> level in attention:
                    add(attn(ch, rescale))
                widths.append(ch)
            if level < len(ch_mult) - 1:
                resampled(ch, Downsample, down)
                if progressive_input == "input_skip":
                    self.flax_order.append(("Downsample", None))
                    add(Combine(image, ch, combine))
                    ch = 2 * ch if combine == "cat" else ch
                elif progressive_input == "residual":
                    add(Downsample(image, ch, smooth))
                    image = ch
                widths.append(ch)
        add(res(ch, ch, temb, rescale))
        add(attn(ch, rescale))
        add(res(ch, ch, temb, rescale))
        for level in reversed(range(len(ch_mult))):
            for _ in range(blocks + 1):
                add(res(ch + widths.pop(), nf * ch_mult[level], temb, rescale))
                ch = nf * ch_mult[level]
            if size >> level in attention:
                add(attn(ch, rescale))
            if progressive == "output_skip":
                if level < len(ch_mult) - 1:
                    self.flax_order.append(("Upsample", None))
                add(norm(ch))
                add(conv(ch, 3))
            if level:
                resampled(ch, Upsample, up)
        if progressive != "output_skip":
            add(norm(ch))
            add(conv(ch, 3))
        self.all_modules = nn.ModuleList(modules)

    def forward(self, x, condition):
        """`condition`: of VE sigma, or the number of a level of `levels`, which divides the output; of VP 999 t."""
        todo = iter(self.all_modules)
        take = lambda: next(todo)  # noqa: E731
        if self.fourier:
            temb = take()(torch.log(condition))
        else:
            half = self.nf // 2
            frequencies = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
            angles = condition[:, None] * frequencies[None, :]
            temb = torch.cat([angles.sin(), angles.cos()], dim=1)
        temb = take()(temb)
        temb = take()(F.silu(temb))
        if self.ve:
            x = 2 * x - 1.0
        image, saved, last = x, [take()(x)], len(self.ch_mult) - 1
        rescaled = lambda x: x / 2**0.5 if self.rescale else x  # noqa: E731
        change = lambda h: take()(h, temb) if self.kind == "biggan" else take()(h)  # noqa: E731
        for level in range(last + 1):
            for _ in range(self.blocks):
                h = take()(saved[-1], temb)
                saved.append(take()(h) if self.size >> level in self.attention else h)
            if level < last:
                h = change(saved[-1])
                if self.progressive_input == "input_skip":
                    image = down(image, self.smooth)
                    h = take()(image, h)
                elif self.progressive_input == "residual":
                    image = h = rescaled(take()(image) + h)
                saved.append(h)
        h = take()(saved[-1], temb)
        h = take()(h)
        h = take()(h, temb)
        out = None
        for level in reversed(range(last + 1)):
            for _ in range(self.blocks + 1):
                h = take()(torch.cat([h, saved.pop()], dim=1), temb)
            if self.size >> level in self.attention:
                h = take()(h)
            if self.progressive == "output_skip":
                found = take()
                found = take()(F.silu(found(h)))
                out = found if out is None else up(out, self.smooth) + found
            if level:
                h = change(h)
        if out is None:
            final = take()
            out = take()(F.silu(final(h)))
        used = self.sigmas[condition.long()].float() if self.levels else condition
        return out / used[:, None, None, None] if self.ve else out


def make(seed=0, **options):
    """A network whose parameters are nowhere zero, biases and norms included."""
    torch.manual_seed(seed)
    net = Network(**options).eval()
    stir(net, 0.1)
    return net


def stir(net, size):
    """Change every trained parameter by noise."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))


def save_pth(net, path, *, averages, step=12_000, prefix=True):
    """The dictionary of a published checkpoint, after a step; `averages` are in the order of the trained parameters."""
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.0)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:  # as its `losses.optimization_manager` warms up: a NumPy scalar
        group["lr"] = 0.0 * np.minimum(step / 5_000, 1.0)
    optimizer.step()
    model = nn.DataParallel(net).state_dict() if prefix else net.state_dict()
    ema = {"decay": 0.999, "num_updates": step, "shadow_params": averages}
    torch.save({"optimizer": optimizer.state_dict(), "model": model, "ema": ema, "step": step}, path)


def as_flax(net, parameters):
    """The parameters (by torch's names) as the tree of the JAX code: one counter for each class of modules."""
    plain = {"Linear": "Dense", "Conv2d": "Conv"}
    names, counters, tree = {id(p): n for n, p in net.named_parameters()}, {}, {}
    for cls, module in net.flax_order:
        cls = plain.get(cls, cls)
        number = counters[cls] = counters.get(cls, -1) + 1
        for path, p in module.named_parameters() if module is not None else ():
            *inside, leaf = path.split(".")
            value = parameters[names[id(p)]].detach().numpy()
            layer = module.get_submodule(".".join(inside))
            if isinstance(layer, nn.GroupNorm):  # of flax 0.3.1 to 0.3.4
                leaf, value = {"weight": "scale"}.get(leaf, leaf), value.reshape(1, 1, 1, -1)
            elif leaf == "weight":
                value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
                leaf = "weight" if inside == ["Conv2d_0"] else "kernel"
            at = tree.setdefault(f"{cls}_{number}", {})
            for name in inside:
                at = at.setdefault(name, {})
            at[leaf] = np.ascontiguousarray(value)
    return tree
