"""pandas: groups, joins, times, text and files."""

import io

import numpy as np
import pandas as pd

generator = np.random.default_rng(11)
count = 20_000
frame = pd.DataFrame(
    {
        "key": generator.integers(0, 50, count),
        "value": generator.normal(size=count).round(6),
        "when": pd.date_range("2024-01-01", periods=count, freq="min", tz="UTC"),
        "text": [f"item {n % 7}" for n in range(count)],
    }
)
print(frame.groupby("key")["value"].agg(["mean", "std", "count"]).round(4).head(3).to_csv())
names = pd.DataFrame({"key": range(50), "name": [f"k{n:02}" for n in range(50)]})
joined = frame.merge(names, on="key")
print(len(joined), joined.pivot_table(index="text", columns="name", values="value", aggfunc="size").iloc[0, :3].tolist())
print(frame.set_index("when")["value"].resample("1D").sum().round(4).tail(2).to_csv())
written = io.StringIO()
frame.head(1000).to_csv(written, index=False)
written.seek(0)
print(pd.read_csv(written, parse_dates=["when"]).equals(frame.head(1000).assign(when=lambda f: f["when"])))
frame.head(500).to_json("/tmp/frame.json", orient="records")
print(pd.read_json("/tmp/frame.json", orient="records").shape)
print(frame["when"].dt.tz_convert("Europe/Berlin").dt.hour.value_counts().sort_index().head(3).tolist())
