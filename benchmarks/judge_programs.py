"""Problems as contests set them, each with a program that solves it, a wrong one, and random tests.

The expected outputs come from functions written another way than the programs, so that neither is taken on trust.
Every wrong program is wrong at every test. Of stdin the programs use no more than `input()`, `sys.stdin.readline` and
`sys.stdin.read`, which the peer's mock of it knows.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

Draw = random.Random


@dataclass(frozen=True)
class ContestProblem:
    """Args:
    mended: a part of the program, and what stands there in the wrong one.
    test: draws an input and its output.
    entry: the method of `Solution`; None: a program that reads stdin.
    """

    name: str
    program: str
    mended: tuple[str, str]
    test: Callable[[Draw], tuple[str, str]]
    entry: str | None = None

    @property
    def wrong(self) -> str:
        right, wrong = self.mended
        if self.program.count(right) != 1:
            raise ValueError(f"{self.name}: {right!r} is there {self.program.count(right)} times")
        return self.program.replace(right, wrong)


def _numbers(draw: Draw, count: int, low: int, high: int) -> list[int]:
    return [draw.randint(low, high) for _ in range(count)]


def _text(*lines: object) -> str:
    return "".join(" ".join(map(str, line)) + "\n" if isinstance(line, list) else f"{line}\n" for line in lines)


# -- stdin ---------------------------------------------------------------------------------------------------------

LONGEST_RISE = """\
from bisect import bisect_left

def main():
    n = int(input())
    a = list(map(int, input().split()))
    tails = []
    for x in a:
        place = bisect_left(tails, x)
        if place == len(tails):
            tails.append(x)
        else:
            tails[place] = x
    print(len(tails))

main()
"""


def _longest_rise(draw: Draw) -> tuple[str, str]:
    values = _numbers(draw, draw.randint(60, 90), 1, 1000)
    best: list[int] = []
    for index, value in enumerate(values):
        best.append(1 + max((best[before] for before in range(index) if values[before] < value), default=0))
    return _text(len(values), values), _text(max(best))


SHORTEST_PATHS = """\
import sys
from heapq import heappush, heappop

def solve():
    data = list(map(int, sys.stdin.read().split()))
    n, m = data[0], data[1]
    graph = [[] for _ in range(n + 1)]
    for i in range(m):
        u, v, w = data[2 + 3 * i : 5 + 3 * i]
        graph[u].append((v, w))
        graph[v].append((u, w))
    infinite = 10**18
    dist = [infinite] * (n + 1)
    dist[1] = 0
    queue = [(0, 1)]
    while queue:
        d, u = heappop(queue)
        if d > dist[u]:
            continue
        for v, w in graph[u]:
            if d + w < dist[v]:
                dist[v] = d + w
                heappush(queue, (d + w, v))
    print(*[d if d < infinite else -1 for d in dist[1:]])

if __name__ == "__main__":
    solve()
"""


def _shortest_paths(draw: Draw) -> tuple[str, str]:
    nodes = draw.randint(12, 20)
    edges = [[*draw.sample(range(1, nodes + 1), 2), draw.randint(1, 50)] for _ in range(2 * nodes)]
    dist = {node: 0 if node == 1 else 10**9 for node in range(1, nodes + 1)}
    for _ in range(nodes):
        for one, other, weight in edges:
            dist[other] = min(dist[other], dist[one] + weight)
            dist[one] = min(dist[one], dist[other] + weight)
    return _text([nodes, len(edges)], *edges), _text([d if d < 10**9 else -1 for d in dist.values()])


KNAPSACK = """\
n, capacity = map(int, input().split())
best = [0] * (capacity + 1)
for _ in range(n):
    weight, value = map(int, input().split())
    for room in range(capacity, weight - 1, -1):
        taken = best[room - weight] + value
        if taken > best[room]:
            best[room] = taken
answer = max(best)
print(answer)
"""


def _knapsack(draw: Draw) -> tuple[str, str]:
    items = [[draw.randint(1, 20), draw.randint(1, 100)] for _ in range(10)]
    capacity = draw.randint(30, 60)
    sums = (
        sum(value for _, value in chosen)
        for count in range(len(items) + 1)
        for chosen in itertools.combinations(items, count)
        if sum(weight for weight, _ in chosen) <= capacity
    )
    return _text([len(items), capacity], *items), _text(max(sums))


PRIMES = """\
import sys
input = sys.stdin.readline

def sieve(limit):
    flags = bytearray([1]) * (limit + 1)
    flags[0] = flags[1] = 0
    p = 2
    while p * p <= limit:
        if flags[p]:
            for multiple in range(p * p, limit + 1, p):
                flags[multiple] = 0
        p += 1
    return flags

q = int(input())
count = [0]
for flag in sieve(3000)[1:]:
    count.append(count[-1] + flag)
for _ in range(q):
    low, high = map(int, input().split())
    print(count[high] - count[low - 1])
"""


@cache
def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))


def _primes(draw: Draw) -> tuple[str, str]:
    asked = [sorted(_numbers(draw, 2, 1, 3000)) for _ in range(20)]
    return _text(len(asked), *asked), _text(*(sum(map(_is_prime, range(low, high + 1))) for low, high in asked))


BRACKETS = """\
import sys

pairs = {')': '(', ']': '[', '}': '{'}

def balanced(text):
    stack = []
    for letter in text:
        if letter in '([{':
            stack.append(letter)
        elif not stack or stack.pop() != pairs[letter]:
            return False
    return not stack

t = int(sys.stdin.readline())
for _ in range(t):
    line = sys.stdin.readline().strip()
    if balanced(line):
        print("Yes")
    else:
        print("No")
"""


def _brackets(draw: Draw) -> tuple[str, str]:
    lines, answers = ["()"], ["Yes"]
    for _ in range(12):
        line = ""
        for _ in range(draw.randint(2, 10)):
            line = draw.choice(("()" + line, f"[{line}]", line + "{}"))
        if draw.random() < 0.5:
            place = draw.randrange(len(line))
            line = line[:place] + draw.choice("([{}])") + line[place + 1 :]
        rest, before = line, ""
        while rest != before:
            before, rest = rest, rest.replace("()", "").replace("[]", "").replace("{}", "")
        lines.append(line)
        answers.append("No" if rest else "Yes")
    return _text(len(lines), *lines), _text(*answers)


COMPONENTS = """\
import sys
sys.setrecursionlimit(10**6)

def main():
    h, w = map(int, input().split())
    grid = [input() for _ in range(h)]
    seen = [[False] * w for _ in range(h)]
    sizes = []

    def fill(y, x):
        seen[y][x] = True
        size = 1
        for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            b, a = y + dy, x + dx
            if 0 <= b < h and 0 <= a < w and grid[b][a] == '#' and not seen[b][a]:
                size += fill(b, a)
        return size

    for y in range(h):
        for x in range(w):
            if grid[y][x] == '#' and not seen[y][x]:
                sizes.append(fill(y, x))
    print(len(sizes), max(sizes))

main()
"""


def _components(draw: Draw) -> tuple[str, str]:
    height, width = draw.randint(8, 14), draw.randint(8, 14)
    grid = [[draw.random() < 0.5 for _ in range(width)] for _ in range(height)]
    grid[0][0] = True
    label = {(y, x): y * width + x for y in range(height) for x in range(width) if grid[y][x]}
    changed = True
    while changed:
        changed = False
        for (y, x), own in label.items():
            least = min([own, *(label[at] for at in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)) if at in label)])
            if least < own:
                label[y, x], changed = least, True
    names = list(label.values())
    rows = ["".join("#" if cell else "." for cell in row) for row in grid]
    return _text([height, width], *rows), _text([len(set(names)), max(map(names.count, names))])


WINDOW_SUMS = """\
n, k = map(int, input().split())
a = [int(x) for x in input().split()]
prefix = [0]
for x in a:
    prefix.append(prefix[-1] + x)
best = None
where = -1
for i in range(n - k + 1):
    total = prefix[i + k] - prefix[i]
    if best is None or total > best:
        best = total
        where = i
print(where + 1)
print("{:.3f}".format(best / k))
"""


def _window_sums(draw: Draw) -> tuple[str, str]:
    values = _numbers(draw, draw.randint(50, 80), -100, 100)
    size = draw.randint(3, 9)
    sums = [sum(values[start : start + size]) for start in range(len(values) - size + 1)]
    return _text([len(values), size], values), _text(sums.index(max(sums)) + 1, f"{max(sums) / size:.3f}")


POWERS = """\
MOD = 998244353

def power(base, exponent):
    result = 1
    while exponent:
        if exponent & 1:
            result = result * base % MOD
        base = base * base % MOD
        exponent >>= 1
    return result

def choose(n, r):
    top = bottom = 1
    for i in range(r):
        top = top * (n - i) % MOD
        bottom = bottom * (i + 1) % MOD
    return top * power(bottom, MOD - 2) % MOD

t = int(input())
for _ in range(t):
    n, r = map(int, input().split())
    print(choose(n, r))
"""


def _powers(draw: Draw) -> tuple[str, str]:
    asked = [[draw.randint(60, 400), draw.randint(2, 50)] for _ in range(10)]
    answers = []
    for n, r in asked:
        row = [1]
        for _ in range(n):
            row = [1, *((a + b) % 998244353 for a, b in itertools.pairwise(row)), 1]
        answers.append(row[r])
    return _text(len(asked), *asked), _text(*answers)


STDIN_PROBLEMS = (
    ContestProblem("longest rise", LONGEST_RISE, ("print(len(tails))", "print(len(tails) + 1)"), _longest_rise),
    ContestProblem("shortest paths", SHORTEST_PATHS, ("dist[1] = 0", "dist[1] = 1"), _shortest_paths),
    ContestProblem("knapsack", KNAPSACK, ("max(best)", "min(best)"), _knapsack),
    ContestProblem("primes", PRIMES, ("print(count[high]", "print(count[high] + 1"), _primes),
    ContestProblem("brackets", BRACKETS, ('"Yes"', '"YES"'), _brackets),
    ContestProblem("components", COMPONENTS, ("size = 1", "size = 2"), _components),
    ContestProblem("window sums", WINDOW_SUMS, ("where + 1", "where"), _window_sums),
    ContestProblem("powers", POWERS, ("return top *", "return -top *"), _powers),
)


# -- call-based ----------------------------------------------------------------------------------------------------

TWO_SUM = """\
from typing import List

class Solution:
    def twoSum(self, nums: List[int], target: int) -> List[int]:
        seen = {}
        for i, x in enumerate(nums):
            if target - x in seen:
                return [seen[target - x], i]
            seen[x] = i
        return []
"""

MERGE = """\
from typing import List

class Solution:
    def merge(self, intervals: List[List[int]]) -> List[List[int]]:
        intervals.sort()
        merged = []
        for start, end in intervals:
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        return merged
"""


def _two_sum(draw: Draw) -> tuple[str, str]:
    values = draw.sample(range(1, 2000, 2), 60)
    one, other = sorted(draw.sample(range(60), 2))
    sums = [values[a] + values[b] for a in range(60) for b in range(a + 1, 60)]
    if sums.count(values[one] + values[other]) > 1:
        return _two_sum(draw)
    return f"{json.dumps(values)}\n{values[one] + values[other]}", json.dumps([one, other])


def _merge(draw: Draw) -> tuple[str, str]:
    intervals = [[start, start + draw.randint(1, 30)] for start in _numbers(draw, 25, 0, 600)]
    # Twice as fine, so that two that only touch are one and two neighbours are not.
    covered = sorted({point for start, end in intervals for point in range(2 * start, 2 * end + 1)})
    merged: list[list[int]] = []
    for point in covered:
        if merged and merged[-1][1] == point - 1:
            merged[-1][1] = point
        else:
            merged.append([point, point])
    return json.dumps(intervals), json.dumps([[start // 2, end // 2] for start, end in merged])


CALL_PROBLEMS = (
    ContestProblem("two sum", TWO_SUM, ("return [seen", "return [-seen[target - x] - 1, seen"), _two_sum, "twoSum"),
    ContestProblem("merge", MERGE, ("return merged", "return merged[1:]"), _merge, "merge"),
)
