"""Multiplies matrices of integers, and solves a system of equations in fractions."""

import fractions


def product(a, b):
    columns = list(zip(*b))
    return [[sum(x * y for x, y in zip(row, column)) for column in columns] for row in a]


def solve(a, b):
    rows = [[fractions.Fraction(x) for x in row] + [fractions.Fraction(y)] for row, y in zip(a, b)]
    for n, _ in enumerate(rows):
        pivot = next(r for r in range(n, len(rows)) if rows[r][n])
        rows[n], rows[pivot] = rows[pivot], rows[n]
        rows[n] = [x / rows[n][n] for x in rows[n]]
        for r, row in enumerate(rows):
            if r != n:
                rows[r] = [x - row[n] * y for x, y in zip(row, rows[n])]
    return [row[-1] for row in rows]


def handler(event, context):
    size, n = 16, event["n"]
    a = [[(x * y + n + (x == y) * 17) % 23 for x in range(size)] for y in range(size)]
    squared = product(a, a)
    small = [[(x * x + y * 3 + (x == y) * 31) % 29 for x in range(8)] for y in range(8)]
    solution = solve(small, [n + y for y in range(8)])
    assert all(sum(x * s for x, s in zip(row, solution)) == n + y for y, row in enumerate(small))
    return {"trace": sum(squared[i][i] for i in range(size)), "first": str(solution[0])}
