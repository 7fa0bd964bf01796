"""Writes parquet/: one table in every codec, page version and encoding of pyarrow, and its rows as JSON. pip install pyarrow==26.0.1"""
import decimal, json, os
import pyarrow as pa, pyarrow.parquet as pq

out = os.path.join(os.path.dirname(os.path.abspath(__file__)), "parquet")
os.makedirs(out, exist_ok=True)
message = pa.struct([("role", pa.string()), ("content", pa.string()), ("weight", pa.float64())])
talk = lambda n: [{"role": "user", "content": "é%d" % n, "weight": None}, {"role": "assistant", "content": "line\nend", "weight": 0.5}]
columns = {
    "text": pa.array(["one", "", "zwei é", None, "\u4e09", "six" * 50, "7"], pa.string()),
    "large": pa.array([None, "b", "c", "d", "", "f" * 300, "g"], pa.large_string()),
    "view": pa.array(["a", "a long text of more than twelve bytes", None, "", "e", "f", "g"], pa.string_view()),
    "bytes": pa.array([b"plain", "é".encode(), None, b"", b"x", b"y", b"z"], pa.binary()),
    "fixed": pa.array([b"ab", b"cd", None, b"ef", b"gh", b"ij", b"kl"], pa.binary(2)),
    "dictionary": pa.array(["same", "same", None, "other", "same", "same", "same"]).dictionary_encode(),
    "required": pa.array(list("abcdefg")),
    "messages": pa.array([talk(1), [], None, [{"role": None, "content": None, "weight": None}], talk(5) + talk(6), [None], talk(7)], pa.list_(message)),
    "large_list": pa.array([["a", None], [], None, ["b"], [""], ["c", "d"], ["e"]], pa.large_list(pa.string())),
    "nested": pa.array([[["a"], []], None, [], [None, ["b", None]], [["c"]], [[""]], [["d", "e"]]], pa.list_(pa.list_(pa.string()))),
    "one_field": pa.array([[{"a": "x"}], [], None, [{"a": None}], [None], [{"a": "y"}, {"a": "z"}], [{"a": ""}]], pa.list_(pa.struct([("a", pa.string())]))),
    "deep": pa.array([{"a": {"b": "x", "c": [1, 2]}}, {"a": None}, None, {"a": {"b": None, "c": None}}, {"a": {"b": "", "c": []}}, {"a": {"b": "y", "c": [3]}}, {"a": {"b": "z", "c": [None]}}],
                     pa.struct([("a", pa.struct([("b", pa.string()), ("c", pa.list_(pa.int32()))]))])),
    "map": pa.array([[("k", 1)], [], None, [("a", None), ("b", 2)], [("c", 3)], [("", 4)], [("d", 5)]], pa.map_(pa.string(), pa.int64())),
    "int8": pa.array([-128, 127, None, 0, 1, 2, 3], pa.int8()),
    "uint64": pa.array([2**64 - 1, 0, None, 1, 2, 3, 4], pa.uint64()),
    "float32": pa.array([0.1, -2.5, None, 18.0, 1e10, 3.0, 1e-7], pa.float32()),
    "float64": pa.array([0.1, 1e300, None, 18.0, -0.0, 3.0, 1e-300], pa.float64()),
    "bool": pa.array([True, False, None, True, True, False, True]),
    "decimal": pa.array([decimal.Decimal("1.50"), decimal.Decimal("-0.05"), None] + [decimal.Decimal("123456.78")] * 4, pa.decimal128(10, 2)),
    "empty": pa.nulls(7, pa.string()),
}
fields = [pa.field(name, values.type, nullable=name != "required") for name, values in columns.items()]
table = pa.table(list(columns.values()), schema=pa.schema(fields))


def plain(value):
    if isinstance(value, bytes): return value.decode()
    if isinstance(value, decimal.Decimal): return str(value)
    if isinstance(value, dict): return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], tuple): return {key: plain(item) for key, item in value}
    if isinstance(value, list): return [plain(item) for item in value]
    return value


def rows(table):
    found = [{key: plain(value) for key, value in row.items()} for row in table.to_pylist()]
    for row in found:
        if row["map"] == []: row["map"] = {}  # a map without entries
        if row["float32"] is not None: row["float32"] = float(str(pa.scalar(row["float32"], pa.float32()).as_py().__format__(".7g")))
    return found


def write(name, table=table, **options):
    pq.write_table(table, os.path.join(out, name + ".parquet"), **{"compression": "none", **options})


for codec in ("none", "snappy", "gzip", "zstd", "lz4", "brotli"):
    write(codec, compression=codec)
    write(codec + "-v2", compression=codec, data_page_version="2.0", version="2.6")
write("plain", use_dictionary=False)
write("names", use_compliant_nested_type=False)
write("old", version="1.0", use_dictionary=False, compression="snappy")
texts = {"text": "DELTA_BYTE_ARRAY", "large": "DELTA_LENGTH_BYTE_ARRAY", "bytes": "DELTA_BYTE_ARRAY", "float32": "BYTE_STREAM_SPLIT", "int8": "DELTA_BINARY_PACKED", "uint64": "DELTA_BINARY_PACKED"}
write("delta", use_dictionary=False, column_encoding=texts, compression="zstd", data_page_version="2.0")
write("groups", row_group_size=2, compression="zstd", write_page_index=True, write_page_checksum=True)
write("index", data_page_size=16, write_batch_size=1, write_page_index=True, store_schema=False)
with open(os.path.join(out, "rows.json"), "w") as file:
    json.dump(rows(table), file, indent=0)

# Three thousand rows in pages and groups of several sizes: their numbers are in their texts.
many = pa.table({"prompt": ["question %d" % n for n in range(3000)], "tags": [["t%d" % (n % 7)] * (n % 4) for n in range(3000)], "completion": ["yes" if n % 3 else None for n in range(3000)]})
write("many", many, compression="zstd", row_group_size=700, data_page_size=512, write_batch_size=50)
