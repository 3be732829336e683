"""Networks of the published layouts, written from their key tables alone: plain layers, and a shift by slicing.

Every network takes folded clips `[N*T, 3, H, W]` and gives a row for each frame it has at its end. Nothing here imports
the package.
"""

from itertools import chain

import torch
from torch import nn
from torch.nn import functional as F

FRAMES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def shifted(x, frames, div=8, order="future_first", causal=False):
    """The shift of a clip of `frames` frames, by slicing."""
    clips = x.unflatten(0, (-1, frames))
    out, channels = clips.clone(), x.shape[1]
    if causal:
        first = channels // div
        out[:, 0, :first], out[:, 1:, :first] = 0, clips[:, :-1, :first]
        return out.flatten(0, 1)
    first, second = channels // div, 2 * (channels // div)
    if order == "past_first":  # Paddle's, in floating point
        first, second = int(channels * (1 / div)), int(channels * 2 * (1 / div))
    one, two = slice(0, first), slice(first, second)
    ahead, behind = (two, one) if order == "past_first" else (one, two)
    out[:, -1, ahead], out[:, :-1, ahead] = 0, clips[:, 1:, ahead]
    out[:, 0, behind], out[:, 1:, behind] = 0, clips[:, :-1, behind]
    return out.flatten(0, 1)


class Shifted(nn.Module):
    """A layer behind a shift; with `place` it writes to what it receives, as E2E-Spot's."""

    def __init__(self, net, frames, inplace=False, **options):
        super().__init__()
        self.net, self.frames, self.inplace, self.options = net, frames, inplace, options

    def forward(self, x):
        moved = shifted(x, self.frames, **self.options)
        return self.net(x.copy_(moved) if self.inplace else moved)


class Pooled(nn.Module):
    def __init__(self, net, frames):
        super().__init__()
        self.net, self.frames = net, frames

    def forward(self, x):
        clips = x.unflatten(0, (-1, self.frames)).transpose(1, 2)
        pooled = F.max_pool3d(clips, (3, 1, 1), (2, 1, 1), (1, 0, 0))
        return self.net(pooled.transpose(1, 2).flatten(0, 1))


class NonLocal3d(nn.Module):
    """By the authors' names, or with `mm` by mmcv's."""

    def __init__(self, block, channels, frames, mode="embedded_gaussian", mm=False):
        super().__init__()
        inside = channels // 2
        self.block, self.frames, self.mode, self.mm = block, frames, mode, mm

        def conv(i, o, bias=True):
            layer = nn.Conv3d(i, o, 1, bias=bias)
            return nn.ModuleDict({"conv": layer}) if mm else layer

        held = nn.Module()
        held.g = nn.ModuleList([conv(channels, inside)])
        if mode != "gaussian":
            held.theta, held.phi = conv(channels, inside), nn.ModuleList([conv(channels, inside)])
        norm = nn.BatchNorm3d(channels)
        if mm:
            held.conv_out = conv(inside, channels, bias=False)
            held.conv_out["bn"] = norm
            self.non_local_block = held
        else:
            held.W = nn.ModuleList([conv(inside, channels), norm])
            self.nl = held

    def forward(self, x):
        x = self.block(x)
        clips = x.unflatten(0, (-1, self.frames)).transpose(1, 2)
        held = self.non_local_block if self.mm else self.nl
        plain = (lambda layer: layer["conv"]) if self.mm else (lambda layer: layer)
        pool = lambda value: F.max_pool3d(value, (1, 2, 2))  # noqa: E731
        theta = clips if self.mode == "gaussian" else plain(held.theta)(clips)
        phi = pool(clips if self.mode == "gaussian" else plain(held.phi[0])(clips))
        g = pool(plain(held.g[0])(clips)).flatten(2).transpose(1, 2)
        pairs = theta.flatten(2).transpose(1, 2) @ phi.flatten(2)
        pairs = pairs / pairs.shape[-1] if self.mode == "dot_product" else pairs.softmax(-1)
        y = (pairs @ g).transpose(1, 2).reshape(len(clips), -1, *clips.shape[2:])
        y = held.conv_out["bn"](held.conv_out["conv"](y)) if self.mm else held.W[1](held.W[0](y))
        return (clips + y).transpose(1, 2).flatten(0, 1)


class ConvNorm(nn.Module):
    """A convolution and its norm under a layout's names for them."""

    def __init__(self, i, o, kernel, stride=1, groups=1, names=("conv", "bn")):
        super().__init__()
        self.names = names
        self.add_module(names[0], nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False))
        self.add_module(names[1], nn.BatchNorm2d(o))

    def forward(self, x):
        for name in self.names:
            x = getattr(self, name)(x)
        return x


# of a block's channels, by its convolutions
EXPANSION = {2: 1, 3: 4}


class Plain(nn.Module):
    """A residual block by torchvision's names."""

    def __init__(self, i, width, stride, convs):
        super().__init__()
        out = width * EXPANSION[convs]
        shapes = [(i, width, 3, stride), (width, out, 3, 1)] if convs == 2 else [
            (i, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)
        ]  # fmt: skip
        for number, (a, b, kernel, step) in enumerate(shapes, 1):
            setattr(self, f"conv{number}", nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False))
            setattr(self, f"bn{number}", nn.BatchNorm2d(b))
        self.convs = convs
        self.downsample = None
        if stride > 1 or i != out:
            self.downsample = nn.Sequential(nn.Conv2d(i, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = x
        for number in range(1, self.convs + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            y = y if number == self.convs else y.relu()
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class Modular(nn.Module):
    """A residual block of ConvNorms: by mmaction2's names, or by Paddle's."""

    def __init__(self, i, width, stride, convs, paddle=False, act=torch.relu, pool=False, frames=None):
        super().__init__()
        names = ("_conv", "_batch_norm") if paddle else ("conv", "bn")
        out = width * EXPANSION[convs]
        shapes = [(i, width, 3, stride), (width, out, 3, 1)] if convs == 2 else [
            (i, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)
        ]  # fmt: skip
        self.layers = [f"conv{number}" for number in range(0 if paddle else 1, convs + (not paddle))]
        for name, (a, b, kernel, step) in zip(self.layers, shapes, strict=True):
            self.add_module(name, ConvNorm(a, b, kernel, step, names=names))
        self.act, self.frames, self.pool = act, frames, pool and stride > 1
        self.shortcut = None
        if stride > 1 or i != out:
            self.shortcut = "short" if paddle else "downsample"
            self.add_module(self.shortcut, ConvNorm(i, out, 1, 1 if pool else stride, names=names))

    def forward(self, x):
        y = x if self.frames is None else shifted(x, self.frames, self.frames, "past_first")
        for name in self.layers:
            y = getattr(self, name)(y)
            y = y if name == self.layers[-1] else self.act(y)
        if self.shortcut is not None:
            x = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False) if self.pool else x
            x = getattr(self, self.shortcut)(x)
        return self.act(x + y)


DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def blocks_of(depth, make):
    """Stages of blocks, each made of its channels in, its width and its stride."""
    convs, i = 2 if depth < 50 else 3, 64
    stages = []
    for stage, count in enumerate(DEPTHS[depth]):
        stages.append([])
        for number in range(count):
            width = 64 << stage
            stages[-1].append(make(i, width, 2 if stage and not number else 1, convs))
            i = width * EXPANSION[convs]
    return stages, i


class ResNet(nn.Module):
    """By torchvision's names, with `mm` by mmaction2's; its features, without a head."""

    def __init__(self, depth, mm=False):
        super().__init__()
        self.mm = mm
        if mm:
            self.conv1 = ConvNorm(3, 64, 7, 2)
        else:
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        stages, self.width = blocks_of(depth, Modular if mm else Plain)
        for number, blocks in enumerate(stages, 1):
            setattr(self, f"layer{number}", nn.Sequential(*blocks))

    def forward(self, x):
        x = (self.conv1(x) if self.mm else self.bn1(self.conv1(x))).relu()
        x = F.max_pool2d(x, 3, 2, 1)
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return x.mean((2, 3))


def shift_resnet(net, frames, place, mm=False, pooled=False, inplace=False):
    """Wrap layers as the release that the layout is of does."""
    stages = [net.layer1, net.layer2, net.layer3, net.layer4]
    step = 2 if place == "blockres" and len(net.layer3) >= 23 else 1
    for number, stage in enumerate(stages):
        t = frames // 2 if pooled and number else frames
        for index in range(0, len(stage), step):
            block = stage[index]
            if place == "block":
                stage[index] = Shifted(block, t)
            elif mm:
                block.conv1.conv = Shifted(block.conv1.conv, t)
            else:
                block.conv1 = Shifted(block.conv1, t, inplace)
    if pooled:
        net.layer2 = Pooled(net.layer2, frames)
    return net


SETTINGS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Inverted(nn.Module):
    def __init__(self, i, o, stride, expand, mm):
        super().__init__()
        hidden = i * expand
        shapes = [(i, hidden, 1, 1, 1)] if expand > 1 else []
        shapes += [(hidden, hidden, 3, stride, hidden), (hidden, o, 1, 1, 1)]
        layers = []
        for number, (a, b, kernel, step, groups) in enumerate(shapes):
            conv = ConvNorm(a, b, kernel, step, groups)
            last = number == len(shapes) - 1
            if mm:  # the activation stands inside of what its names say
                layers.append(conv if last else Activated(conv))
            else:
                layers += [conv.conv, conv.bn, *([] if last else [nn.ReLU6()])]
        self.conv = nn.Sequential(*layers)
        self.same = stride == 1 and i == o

    def forward(self, x):
        return x + self.conv(x) if self.same else self.conv(x)


class Activated(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.conv, self.bn = layer.conv, layer.bn

    def forward(self, x):
        return F.relu6(self.bn(self.conv(x)))


class MobileNet(nn.Module):
    """By the authors' names, with `mm` by mmaction2's; its features, without a head."""

    def __init__(self, frames, mm=False, wrap=True, causal=False):
        super().__init__()
        self.mm, i = mm, 32
        stem = ConvNorm(3, 32, 3, 2)
        stages = []
        for expand, o, count, stride in SETTINGS:
            stages.append([])
            for number in range(count):
                block = Inverted(i, o, 1 if number else stride, expand, mm)
                if block.same and expand > 1:
                    if wrap:
                        block.conv[0] = Shifted(block.conv[0], frames)
                    else:
                        hook = lambda _, args: (shifted(args[0], frames, causal=causal),)  # noqa: E731
                        block.conv.register_forward_pre_hook(hook)
                stages[-1].append(block)
                i = o
        head = ConvNorm(320, 1280, 1)
        if mm:
            self.conv1, self.conv2 = Activated(stem), Activated(head)
            for number, blocks in enumerate(stages, 1):
                setattr(self, f"layer{number}", nn.Sequential(*blocks))
        else:
            plain = [nn.Sequential(layer.conv, layer.bn, nn.ReLU6()) for layer in (stem, head)]
            self.features = nn.Sequential(plain[0], *chain(*stages), plain[1])

    def forward(self, x):
        if not self.mm:
            return self.features(x).mean((2, 3))
        x = self.conv1(x)
        for number in range(1, 8):
            x = getattr(self, f"layer{number}")(x)
        return self.conv2(x).mean((2, 3))


def leaky(x):
    return F.leaky_relu(x, 0.01)


class PaddleResNet(nn.Module):
    """PaddleVideo's TSM, or with `tweaked` its PP-TSM."""

    def __init__(self, depth, frames, tweaked):
        super().__init__()
        names = ("_conv", "_batch_norm")
        self.act = leaky if tweaked else torch.relu
        if tweaked:
            self.conv1_1 = ConvNorm(3, 32, 3, 2, names=names)
            self.conv1_2 = ConvNorm(32, 32, 3, names=names)
            self.conv1_3 = ConvNorm(32, 64, 3, names=names)
        else:
            self.conv = ConvNorm(3, 64, 7, 2, names=names)
        self.stem = ["conv1_1", "conv1_2", "conv1_3"] if tweaked else ["conv"]

        def make(i, width, stride, convs):
            return Modular(i, width, stride, convs, True, self.act, pool=tweaked, frames=frames)

        stages, self.width = blocks_of(depth, make)
        self.blocks = []
        for stage, blocks in enumerate(stages):
            for number, block in enumerate(blocks):
                letter = f"b{number}" if depth > 50 and stage == 2 and number else chr(97 + number)
                if depth > 50 and stage == 2 and not number:
                    letter = "a"
                self.blocks.append(f"bb_{stage}_{number}" if tweaked else f"res{stage + 2}{letter}")
                self.add_module(self.blocks[-1], block)

    def forward(self, x):
        for name in self.stem:
            x = self.act(getattr(self, name)(x))
        x = F.max_pool2d(x, 3, 2, 1)
        for name in self.blocks:
            x = getattr(self, name)(x)
        return x.mean((2, 3))


class Separable(nn.Module):
    """A block of PP-LCNetV2."""

    def __init__(self, i, o, stride, kernel, split, many, squeeze, shortcut):
        super().__init__()
        self.same = shortcut and stride == 1 and i == o
        self.many, self.split = many, split
        if many:
            kernels = [k for k in range(kernel, 0, -2) if k > 1 or stride == 1]
            self.dw_conv_list = nn.ModuleList([ConvNorm(i, i, k, stride, i) for k in kernels])
            self.dw_conv = nn.Conv2d(i, i, kernel, stride, kernel // 2, groups=i)  # of reparameterising
        else:
            self.dw_conv = ConvNorm(i, i, kernel, stride, i)
        if squeeze:
            self.se = nn.ModuleDict({"conv1": nn.Conv2d(i, i // 4, 1), "conv2": nn.Conv2d(i // 4, i, 1)})
        if split:
            self.pw_conv_1, self.pw_conv_2 = ConvNorm(i, o // 2, 1), ConvNorm(o // 2, o, 1)
        else:
            self.pw_conv = ConvNorm(i, o, 1)

    def forward(self, x):
        y = sum(layer(x) for layer in self.dw_conv_list) if self.many else self.dw_conv(x)
        y = y.relu()
        if hasattr(self, "se"):
            gate = self.se["conv2"](self.se["conv1"](y.mean((2, 3), keepdim=True)).relu()).sigmoid()
            y = y * gate
        for name in ("pw_conv_1", "pw_conv_2") if self.split else ("pw_conv",):
            y = getattr(self, name)(y).relu()
        return x + y if self.same else y


class PaddleVersion2(nn.Module):
    """PP-TSMv2, with its head, which its dropout multiplies by 0.8 in evaluation."""

    def __init__(self, frames, classes):
        super().__init__()
        self.frames = frames
        self.stem = nn.ModuleList(
            [ConvNorm(3, 32, 3, 2), Separable(32, 64, 1, 3, False, False, False, False)]
        )
        settings = (
            (64, 3, 2, 0, 0, 0, 0),
            (128, 3, 2, 0, 0, 0, 0),
            (256, 5, 6, 1, 1, 1, 0),
            (512, 5, 2, 0, 1, 0, 1),
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    Separable(2 * i if number else i, 2 * i, 1 if number else 2, kernel, *flags)
                    for number in range(count)
                )
            )
            for i, kernel, count, *flags in settings
        )
        self.last_conv = nn.Conv2d(1024, 1280, 1, bias=False)
        self.fc = nn.Linear(1280, classes)

    def forward(self, x):
        x = self.stem[1](self.stem[0](x).relu())
        for number, stage in enumerate(self.stages):
            x = stage(shifted(x, self.frames, self.frames, "past_first") if number == 2 else x)
        return self.fc(0.8 * self.last_conv(x.mean((2, 3), keepdim=True)).relu().flatten(1))


class Y(nn.Module):
    """A block of RegNet-Y."""

    def __init__(self, i, o, stride, group, frames):
        super().__init__()
        self.conv1 = Shifted(ConvNorm(i, o, 1), frames, inplace=True)
        self.conv2 = ConvNorm(o, o, 3, stride, o // group)
        inside = round(i / 4)
        self.se = nn.ModuleDict({"fc1": nn.Conv2d(o, inside, 1), "fc2": nn.Conv2d(inside, o, 1)})
        self.conv3 = ConvNorm(o, o, 1)
        if i != o or stride > 1:
            self.downsample = ConvNorm(i, o, 1, stride)

    def forward(self, x):
        y = self.conv2(self.conv1(x).relu()).relu()
        y = y * self.se["fc2"](self.se["fc1"](y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        y = self.conv3(y)
        # read after the shift wrote to it
        return (y + (self.downsample(x) if hasattr(self, "downsample") else x)).relu()


class RegNet(nn.Module):
    """RegNet-Y 200MF by timm's names, shifted as E2E-Spot does."""

    width = 368

    def __init__(self, frames):
        super().__init__()
        self.stem, i = ConvNorm(3, 32, 3, 2), 32
        for stage, (o, count) in enumerate(((24, 1), (56, 1), (152, 4), (368, 7)), 1):
            blocks = nn.ModuleDict()
            for number in range(1, count + 1):
                blocks[f"b{number}"] = Y(i, o, 1 if number > 1 else 2, 8, frames)
                i = o
            setattr(self, f"s{stage}", blocks)

    def forward(self, x):
        x = self.stem(x).relu()
        for stage in range(1, 5):
            for block in getattr(self, f"s{stage}").values():
                x = block(x)
        return x.mean((2, 3))


class ChannelNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Next(nn.Module):
    """A block of ConvNeXt."""

    def __init__(self, width, frames):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))
        self.conv_dw = Shifted(nn.Conv2d(width, width, 7, 1, 3, groups=width), frames, inplace=True)
        self.norm = nn.LayerNorm(width, 1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x):
        y = self.norm(self.conv_dw(x).movedim(1, -1))
        y = self.mlp["fc2"](F.gelu(self.mlp["fc1"](y))) * self.gamma
        return x + y.movedim(-1, 1)


class ConvNeXt(nn.Module):
    """ConvNeXt-T by timm's names, shifted as E2E-Spot does."""

    width = 768

    def __init__(self, frames):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 96, 4, 4), ChannelNorm(96, 1e-6))
        self.stages = nn.ModuleList()
        for stage, count in enumerate((3, 3, 9, 3)):
            width = 96 << stage
            parts = nn.ModuleDict()
            if stage:
                down = nn.Conv2d(width // 2, width, 2, 2)
                parts["downsample"] = nn.Sequential(ChannelNorm(width // 2, 1e-6), down)
            parts["blocks"] = nn.Sequential(*(Next(width, frames) for _ in range(count)))
            self.stages.append(parts)
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(768, 1e-6)})

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage["downsample"](x) if "downsample" in stage else x
            x = stage["blocks"](x)
        return self.head["norm"](x.mean((2, 3)))


class Recurrent(nn.Module):
    """E2E-Spot's GRU head."""

    def __init__(self, width, classes, frames, layers=1):
        super().__init__()
        self.frames = frames
        self._gru = nn.GRU(width, width, layers, batch_first=True, bidirectional=True)
        self._fc_out = nn.ModuleDict({"_fc_out": nn.Linear(2 * width, classes)})

    def forward(self, x):
        hidden, _ = self._gru(x.unflatten(0, (-1, self.frames)))
        return self._fc_out["_fc_out"](hidden).flatten(0, 1)


class Linear(nn.Module):
    """E2E-Spot's plain head."""

    def __init__(self, width, classes):
        super().__init__()
        self._fc_out = nn.Linear(width, classes)

    def forward(self, x):
        return self._fc_out(x)


def trained(*parts):
    """Networks whose branches and statistics are drawn, so that each of them shows; in evaluation mode.

    The statistics are those of FRAMES: values neither vanish nor explode.
    """
    # a softmax over large products would magnify rounding
    sharp = any(isinstance(module, NonLocal3d) for part in parts for module in part.modules())
    weights = (0.2, 0.4) if sharp else (0.5, 1.0)
    for part in parts:
        for module in part.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
                nn.init.uniform_(module.weight, *weights)
                nn.init.normal_(module.bias, std=0.1)
                module.momentum = 1.0
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.05)
                nn.init.normal_(module.bias, std=0.05)
            elif isinstance(module, Next):
                nn.init.uniform_(module.gamma, 0.1, 0.5)
    x = FRAMES.clone()
    with torch.no_grad():
        for part in parts:
            x = part.train()(x)
            part.eval()
    for part in parts:
        for name, value in part.named_buffers():
            if name.endswith("running_var"):  # dead channels would magnify rounding
                value.clamp_(min=0.1)
    return parts
