"""Numeric kernels: arrays in, arrays out, no names of runs and no figures.

scores     of losses: recovery, alignment, online loss, tokens; visits and turns of a schedule
ages       losses by age, beside a control at equal age and time; scores from them
inference  means without NaN, bootstraps, intervals, permutation tests
maps       a number for every pair: cosines, CKA, lags
pairs      what such numbers can tell: effects of items, intervals over items, Mantel's test
circular   directions on a circle
cycles     of trajectories: residuals, loops, rotations, stripes, components, staircases
coalitions what each of several adds to what they make together
"""

from recovery_probe.stats.ages import *  # noqa: F403
from recovery_probe.stats.circular import *  # noqa: F403
from recovery_probe.stats.coalitions import *  # noqa: F403
from recovery_probe.stats.cycles import *  # noqa: F403
from recovery_probe.stats.inference import *  # noqa: F403
from recovery_probe.stats.maps import *  # noqa: F403
from recovery_probe.stats.pairs import *  # noqa: F403
from recovery_probe.stats.scores import *  # noqa: F403
