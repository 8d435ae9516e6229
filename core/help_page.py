"""The page behind --help, put together from what is there. No torch, no Hydra."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator

from core import rooms
from core.options import plain, settings, show
from core.run_options import NESTED, Run

EXAMPLES = {
    "train.py": """\
  python train.py                                     a small run that shows learning within minutes
  python train.py agent=sac env=dmc/cheetah-run seeds=[0,1,2] steps=500_000
  python train.py agent=dqn env=atari/breakout interventions=[layer_norm,reset] replay_ratio=2 device=cuda
  python train.py interventions=[reset] interventions.reset.when.every=5_000 agent.learning_rate=1e-4
  python train.py -m env=dmc/walker-run,dmc/hopper-hop replay_ratio=1,4     every combination, one after the other
  python train.py agent=der env=atari/pong --cfg job     show every setting of a run, start nothing
""",
    "-m testbeds": """\
  python -m testbeds env=testbed/permuted_pixels seeds=[0,1,2] interventions=[l2_init]
  python -m testbeds env=testbed/warm_start env.share=0.1 env.noise=0.5 agent.optimizer=sgd
  python -m testbeds agent=regressor env=testbed/large_means env.offsets=[0,5] value=hl_gauss
  python -m testbeds env=testbed/chunks net=resnet18 env.data=cifar10 env.folder=data/cifar10 device=cuda
  python -m testbeds env=testbed/chunks --cfg job     show every setting of a run, start nothing
""",
}
PAGE = """\
usage: python {script} [GROUP=CHOICE] [OPTION=VALUE] ...

{examples}
groups, with settings GROUP.SETTING=VALUE
{groups}

interventions=[a,b], acting in this order, with settings interventions.a.SETTING=VALUE
{interventions}

options; an agent or environment may bring other values, the command line has the last word
{options}

environments
{environments}

The command that started a run resumes it. --hydra-help lists the flags for sweeps, clusters and completion.
"""


def page(script: str) -> str:
    """Usage, what can be chosen, and the options with their defaults."""
    envs = rooms.env_names()
    families = Counter(name.partition("/")[0] for name in envs)
    lines = rooms.interventions()
    width = max(map(len, lines), default=0)
    return PAGE.format(
        script=script,
        examples=EXAMPLES[script],
        groups="\n".join(
            [_wrapped(group, rooms.choices(group)) for group in rooms.TABLES]
            + [
                _wrapped(
                    "env", [*(f"{name}/... ({count})" for name, count in families.items()), "gym/ANY-GYMNASIUM-ID"]
                )
            ]
        ),
        interventions="\n".join(f"  {name:<{width}}  {line}" for name, line in lines.items()),
        options="\n".join(_options()),
        environments="\n".join(
            _wrapped(f"{family}/", [name.partition("/")[2] for name in envs if name.startswith(f"{family}/")])
            for family in families
        ),
    )


def _options() -> Iterator[str]:
    fields, defaults = settings(Run), plain(Run())
    nested = {name: defaults.pop(name) for name in NESTED}
    rows = [(f"{name}={show(value)}", fields[name]) for name, value in defaults.items()]
    for group, values in nested.items():
        inner = settings(type(getattr(Run(), group)))
        rows += [(f"{group}.{name}={show(value)}", inner[name]) for name, value in values.items()]
    width = max(len(left) for left, _ in rows)
    for left, field in rows:
        yield f"  {left:<{width}}  {field.metadata['help']}"


def _wrapped(title: str, names: Iterable[str]) -> str:
    text = f"  {title:<8} {', '.join(names)}"
    return textwrap.fill(text, 110, subsequent_indent=" " * 11, break_on_hyphens=False)
