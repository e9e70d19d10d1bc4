"""Fills tables in memory and asks across them."""

import sqlite3


def handler(event, context):
    base = sqlite3.connect(":memory:")
    base.executescript("create table item (id integer primary key, kind text, price real); create index kinds on item (kind);"
                       "create table sold (item integer references item, many integer);")
    base.executemany("insert into item (kind, price) values (?, ?)",
                     [(f"kind-{n % 9}", n * 1.5) for n in range(400)])
    base.executemany("insert into sold values (?, ?)",
                     [(n * 7 % 400 + 1, n % 11 + event["n"] % 3) for n in range(800)])
    rows = base.execute("select kind, count(*), round(sum(price * many), 2) from item join sold on sold.item = item.id"
                        " group by kind order by kind").fetchall()
    base.close()
    return {"rows": rows, "n": event["n"]}
