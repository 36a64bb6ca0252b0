"""What libraries say of each other when they are imported is not told; what else they say is."""

import logging

import pytest

import fusionkit  # noqa: F401  # sets the filters


@pytest.mark.parametrize(
    ("name", "news"),
    [
        ("torch.utils._pytree", "<enum 'Scale'> is an Enum subclass and is now natively supported by torch"),
        ("torchao", "Skipping import of cpp extensions due to incompatible torch version. Please upgrade"),
        ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward from kernels-community: no network"),
    ],
)
def test_only_what_is_said_on_import_is_left_out(name, news, caplog):
    logging.getLogger(name).warning(news)
    assert not caplog.records
    logging.getLogger(name).warning("your weights are wrong")
    assert [record.getMessage() for record in caplog.records] == ["your weights are wrong"]
