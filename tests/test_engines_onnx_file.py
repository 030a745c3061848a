"""What ONNX files say about themselves, and how they are compressed."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
import zstandard

from yolact.data.labels import Classes
from yolact.engines.compress import FORMATS, compress_file, compressed_size, unpack
from yolact.engines.onnx_file import ModelMetadata
from yolact.errors import CheckpointError
from yolact.files import Compression
from yolact.presets import named_config


def test_metadata_survives_the_round_trip() -> None:
    metadata = ModelMetadata(
        classes=Classes(("a", "ünïcode"), (1, 90)),
        config=named_config("yolact_darknet_small"),
        image_size=(160, 160),
        recipe="--- \nmodifiers: []",
        sparsity=0.8316,
        float_layers=("proto_net.0", "fpn.lat_layers.1"),
        accuracy={"images": 5, "float": {"mask": 59.4}, "file": {"mask": 58.4}},
    )
    assert ModelMetadata.from_props(metadata.to_props()) == metadata


def test_a_file_of_another_tool_has_no_metadata() -> None:
    found = ModelMetadata.from_props({"config": "theirs", "names": "{0: 'person'}"})
    assert found == ModelMetadata(version=None)


@pytest.mark.parametrize(
    "props",
    [
        {"classes": '["a"]', "category_ids": "[1, 2]"},
        {"classes": "oops", "category_ids": "[1]"},
        {"image_size": "[550]"},
        {"image_size": "550"},
        {"config": '{"nome": 1}', "config_name": "x"},
        {"sparsity": "much"},
    ],
)
def test_damaged_metadata_is_an_error(props: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match="the file's metadata is damaged: ") as caught:
        ModelMetadata.from_props(props)
    assert caught.value.hint == "export the model again with sparseml.yolact.export_onnx"


def test_compressed_size_is_that_of_gzip(tmp_path: Path) -> None:
    path = tmp_path / "weights.onnx"
    data = np.where(np.arange(300_000) % 10 == 0, np.arange(300_000), 0).astype(np.int32).tobytes()
    path.write_bytes(data)
    expected = len(gzip.compress(data, 9))
    assert compressed_size(path) == pytest.approx(expected, abs=8)
    assert compressed_size(path) < 0.2 * len(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_compressed_files_unpack_and_do_not_depend_on_the_time(
    kind: Compression, tmp_path: Path
) -> None:
    path = tmp_path / "weights.onnx"
    path.write_bytes(b"weights" * 1000)
    size = compressed_size(path, kind)
    packed = compress_file(path, kind)
    assert packed.name == f"weights.onnx.{kind}"
    first = packed.read_bytes()
    assert len(first) == size < 700
    assert unpack(packed) == path.read_bytes()
    assert compress_file(path, kind).read_bytes() == first
    assert compressed_size(packed) == size, "what is compressed counts as it is"


def test_other_tools_read_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "weights.onnx"
    path.write_bytes(b"weights" * 1000)
    assert gzip.decompress(compress_file(path, "gz").read_bytes()) == path.read_bytes()
    assert lzma.decompress(compress_file(path, "xz").read_bytes()) == path.read_bytes()
    packed = compress_file(path, "zst").read_bytes()
    assert zstandard.ZstdDecompressor().decompress(packed) == path.read_bytes()


def test_zstandard_files_of_other_tools_may_not_say_how_long_they_are(tmp_path: Path) -> None:
    packer = zstandard.ZstdCompressor(write_content_size=False)
    path = tmp_path / "weights.onnx.zst"
    path.write_bytes(packer.compress(b"weights" * 1000))
    assert unpack(path) == b"weights" * 1000


@pytest.mark.parametrize("kind", FORMATS)
def test_files_that_are_not_what_their_ending_says_are_named(
    kind: Compression, tmp_path: Path
) -> None:
    path = tmp_path / f"weights.onnx.{kind}"
    path.write_bytes(b"not compressed at all")
    with pytest.raises(CheckpointError) as caught:
        unpack(path)
    assert str(caught.value).startswith(f"{path} is damaged: ")
    assert caught.value.hint == "copy it again"
