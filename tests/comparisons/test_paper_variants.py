"""Fused stages against the counts behind the paper's Table 3 (arXiv:2104.00298; counted from the released code)."""

import pytest
from benchmarks.paper.throughput import with_fused

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.architectures.registry import get_architecture
from efficientnetv2.architectures.spec import fused_mbconv

B4 = get_architecture("efficientnet_b4")


@pytest.mark.parametrize(
    ("stages", "kernel", "millions", "paper"),
    [
        (3, None, 20.95, None),  # the paper prints 20.0
        (5, None, 43.5, 43.4),
        (7, None, 132.1, 132.0),
        (3, 3, 19.94, None),
        (5, 3, 29.0, None),
        (7, 3, 65.5, None),
    ],
)
def test_fusing_b4s_stages_gives_table_3s_parameters(stages, kernel, millions, paper):
    counted = count_flops(with_fused(B4, stages=stages, kernel=kernel), image_size=380).total.parameters / 1e6
    assert counted == pytest.approx(millions, rel=2e-3)
    if paper:
        assert counted == pytest.approx(paper, rel=5e-3)


def test_only_the_first_stages_change_and_lose_squeeze_excite():
    made = with_fused(B4, stages=2)
    assert [stage.operator for stage in made.stages[:2]] == [
        fused_mbconv(expand=1, kernel=3),
        fused_mbconv(expand=6, kernel=3),
    ]
    assert made.stages[2:] == B4.stages[2:]
    assert with_fused(B4, stages=0) == B4
