"""What operations do to channels: tables of the functions, methods and modules whose effect is known.

An operation that is in none of them freezes the channels it reads. Functions and methods are known by name.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

ELEMENTWISE = {
    *(
        "relu relu_ relu6 hardtanh hardswish hardsigmoid sigmoid tanh gelu silu elu selu celu leaky_relu mish softplus"
    ).split(),
    *("hardswish_ hardtanh_ sigmoid_ tanh_ silu_ leaky_relu_ swish softsign logsigmoid rrelu threshold").split(),
    *("dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout stochastic_depth drop_path").split(),
    *("clamp clamp_ clamp_min clamp_max clip abs neg exp log sqrt rsqrt pow square erf reciprocal sign round").split(),
    *("add add_ iadd sub sub_ isub mul mul_ imul div div_ truediv itruediv maximum minimum where masked_fill").split(),
    *("float half bfloat16 double to type type_as contiguous clone detach identity cpu cuda").split(),
}
POOLS = {
    *("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool2d interpolate upsample").split(),
    *("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d").split(),
    *("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d boolean_dispatch").split(),
}
REDUCTIONS = {"mean", "sum", "amax", "amin"}
MOVES = {
    *("view reshape flatten unflatten permute transpose t swapaxes swapdims movedim unsqueeze squeeze expand").split(),
    *("chunk split cat concat concatenate stack getitem narrow unbind roll flip expand_as view_as tile repeat").split(),
}
CHANNEL_NORMS = (_BatchNorm, _InstanceNorm)
ELEMENTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU),
    *(nn.SELU, nn.CELU, nn.LeakyReLU, nn.Mish, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Threshold),
    *(
        nn.RReLU,
        nn.Hardshrink,
        nn.Softshrink,
        nn.Identity,
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        nn.Dropout3d,
        nn.AlphaDropout,
        nn.FeatureAlphaDropout,
    ),
)
POOL_MODULES = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.LPPool2d, nn.Upsample),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
)
MOVE_MODULES = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle)
SAME_SHAPE_FUNCTIONS = {"size", "dim", "numel", "getattr", "len", "ndimension"}
