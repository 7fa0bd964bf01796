"""Makes statistics/cases.json: intervals, p-values, Holm's correction and power, by SciPy and statsmodels. `python make_statistics.py`"""

import json
import pathlib

import numpy as np
from scipy import integrate, optimize, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

FOLDER = pathlib.Path(__file__).parent / "statistics"
FOLDER.mkdir(exist_ok=True)
rng = np.random.default_rng(1979)

pairs = []
for count in [2, 3, 5, 8]:
    before, after = rng.normal(0.3, 0.02, count), rng.normal(0.29, 0.02, count)
    test = stats.ttest_rel(after, before)
    interval = test.confidence_interval(0.95)
    pairs.append({
        "before": before.tolist(), "after": after.tolist(), "t": test.statistic, "p": test.pvalue,
        "low": interval.low, "high": interval.high,
    })

corrections = []
for count in [1, 2, 7, 20]:
    p = np.concatenate([rng.uniform(0, 1, count - count // 2), rng.uniform(0, 0.01, count // 2)])
    corrections.append({"p": p.tolist(), "holm": multipletests(p, method="holm")[1].tolist()})

powers = []
for count in [2, 3, 5, 10, 40]:
    for level in [0.05, 0.05 / 8]:
        # `ratio` is the mean of the paired differences in its standard errors. statsmodels' `solve_power` is off by up to 0.002 of it, and
        # its `power` is not a number for some large ratios.
        degrees = count - 1
        critical = stats.t.ppf(1 - level / 2, degrees) / np.sqrt(degrees)

        def power(ratio):
            def at(w):
                return stats.chi.pdf(w, degrees) * (stats.norm.cdf(ratio - critical * w) + stats.norm.cdf(-ratio - critical * w))

            return integrate.quad(at, 0, 20, limit=1000, points=[ratio / critical], epsabs=1e-12)[0]

        at_3 = TTestPower().power(3 / np.sqrt(count), count, level, alternative="two-sided")
        ratio = optimize.brentq(lambda ratio: power(ratio) - 0.8, 1, 400, xtol=1e-10)
        powers.append({"degrees": degrees, "level": level, "ratio": ratio, "power_at_3": float(at_3)})

rates = []
for right, total in [(0, 60), (5, 60), (178, 200), (200, 200)]:
    low, high = proportion_confint(right, total, method="wilson")
    rates.append({"right": right, "total": total, "low": float(low), "high": float(high)})

cases = {"pairs": pairs, "corrections": corrections, "powers": powers, "rates": rates}
(FOLDER / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
