"""The product of two pooled vectors."""

import torch

from fusionkit.fusion.late import Late
from fusionkit.types import Tokens


def test_image_text_and_their_product_stand_side_by_side():
    torch.manual_seed(0)
    fusion = Late(image_size=6, text_size=4)
    image, text = (
        Tokens(torch.randn(rows, 2, width), None, torch.randn(rows, width)) for rows, width in ((2, 6), (3, 4))
    )
    index = torch.tensor([1, 0, 1])
    pooled = fusion(fusion.prepare(image), text, index).pooled
    seen, read = fusion.project_image(image.pooled)[index], fusion.project_text(text.pooled)
    torch.testing.assert_close(pooled, torch.cat([seen, read, seen * read], dim=1))
    assert (fusion.hidden_size, fusion.pooled_size) == (4, 12)
    assert Late(6, 4, hidden_size=5).pooled_size == 15
