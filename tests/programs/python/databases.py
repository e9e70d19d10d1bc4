"""sqlite3: on a file with its journal and with a write-ahead log, from several threads, and in memory."""

import os
import sqlite3
import threading

for mode in ("delete", "wal"):
    path = f"/tmp/{mode}.db"
    with sqlite3.connect(path) as base:
        print(mode, base.execute(f"pragma journal_mode={mode}").fetchone())
        base.execute("create table t (n integer primary key, text text)")
        base.executemany("insert into t (text) values (?)", ((f"row {n}",) for n in range(2000)))

    def add(number):
        own = sqlite3.connect(path, timeout=60)
        for n in range(20):
            with own:
                own.execute("insert into t (text) values (?)", (f"{number}/{n}",))
        own.close()

    threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        with base:
            base.execute("delete from t")
            raise RuntimeError
    except RuntimeError:
        pass
    print(base.execute("select count(*), count(distinct text), sum(n) from t").fetchone())
    print(base.execute("pragma integrity_check").fetchone())
    base.close()
    print(sorted(name for name in os.listdir("/tmp") if name.startswith(mode)))

memory = sqlite3.connect(":memory:")
memory.create_function("twice", 1, lambda value: value * 2)
print(memory.execute("select twice(21), json_extract('{\"a\": [1, 2]}', '$.a[1]')").fetchone())
print(memory.execute("with recursive c(x) as (select 1 union all select x + 1 from c where x < 1000) select sum(x) from c").fetchone())
