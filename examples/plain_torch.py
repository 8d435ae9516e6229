"""ReDo and Shrink & Perturb in a training loop of plain torch.

python -m examples.plain_torch
"""

import torch
from torch import nn

from core.adapter import Plastic
from core.when import When
from interventions.redo import ReDo
from interventions.shrink_and_perturb import ShrinkAndPerturb

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
interventions = [ReDo(when=When(every=100)), ShrinkAndPerturb(keep=0.9, noise=0.1, when=When(every=500))]
plastic = Plastic(net, optimizer, interventions, example=torch.randn(32, 8))

for _ in range(1_000):
    x = torch.randn(32, 8)
    optimizer.zero_grad()
    nn.functional.mse_loss(net(x)[:, 0], x.prod(1)).backward()
    optimizer.step()
    for row in plastic.step(x):
        print(f"update {row['updates']}: {row['intervention']} changed {row['touched']} entries")
