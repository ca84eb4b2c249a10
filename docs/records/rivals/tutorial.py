"""PyTorch's CIFAR-10 tutorial as it is taught: torchvision's DataLoader, batch 4, SGD, 2 epochs.

python docs/records/rivals/tutorial.py DATA_ROOT; prints accuracy and seconds of training and test.
"""

import json
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10


class Net(nn.Module):
    """The tutorial's network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) to (N, 10)."""
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)  # type: ignore[no-any-return]


def main(root: str) -> None:
    """Trains, tests, prints."""
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]
    )
    train_set = CIFAR10(root, train=True, transform=transform)
    test_set = CIFAR10(root, train=False, transform=transform)
    train_loader = DataLoader(train_set, batch_size=4, shuffle=True, num_workers=2)
    test_loader = DataLoader(test_set, batch_size=4, shuffle=False, num_workers=2)
    start = time.perf_counter()
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    for _ in range(2):
        for images, labels in train_loader:
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
    correct = 0
    with torch.no_grad():
        for images, labels in test_loader:
            correct += int((net(images).argmax(1) == labels).sum())
    seconds = time.perf_counter() - start
    print(json.dumps({"accuracy": correct / len(test_set), "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1])
