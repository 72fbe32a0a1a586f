"""Probability distribution encoder (PDE): a Gaussian of every token, whose variance depends on the other tokens."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.layers.cross_attention import init_transformer, mlp
from polymodal.layers.gaussian import DiagonalGaussian

LOG_SIGMA = (-10.0, 5.0)  # bounds, so that neither exp nor its gradient overflows


class ProbabilityDistributionEncoder(nn.Module):
    """Self-attention, one half of whose heads gives the mean, the other the log sigma (MAP, Ji et al. 2023, section 3.1
    and released code).

    The mean has a residual connection from the input, the log sigma none, so that it starts near 0.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0, sequence_attention: bool = True):
        """sequence_attention: False for an MLP of each token alone. Raises UserError for a width or a number of heads
        that does not divide."""
        super().__init__()
        if num_heads % 2 or width % num_heads:
            raise UserError(
                f"Half of the heads are for the mean: a width of {width} does not divide into {num_heads} heads of two "
                "kinds."
            )
        self.num_heads, self.sequence_attention, self.attention_dropout = num_heads, sequence_attention, dropout
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.mean_projection = nn.Linear(width // 2, width)
        self.log_sigma_projection = nn.Linear(width // 2, width)
        self.mean_norm, self.mean_mlp = nn.LayerNorm(width), mlp(width, 4 * width, dropout=dropout)
        self.log_sigma_norm, self.log_sigma_mlp = nn.LayerNorm(width), mlp(width, 4 * width, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        init_transformer(self)

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        mask: Bool[Tensor, "batch length"] | None = None,
        count: int | None = None,
    ) -> DiagonalGaussian:
        """mask: False for padding, which no token attends to. count: of the first tokens, which are all that is
        returned; by default all."""
        query, key, value = (
            self.query_key_value(self.norm(F.gelu(self.dense(x))))
            .unflatten(2, (3, self.num_heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        x, query = x[:, :count], query[:, :, :count]
        if self.sequence_attention:
            keys = None if mask is None else mask[:, None, None]
            dropped = self.attention_dropout if self.training else 0.0
            value = F.scaled_dot_product_attention(query, key, value, attn_mask=keys, dropout_p=dropped)
        value = value[:, :, :count]
        of_mean, of_log_sigma = value.transpose(1, 2).flatten(2).chunk(2, dim=2)
        mean = x + self.dropout(self.mean_projection(of_mean))
        mean = mean + self.dropout(self.mean_mlp(self.mean_norm(mean)))
        log_sigma = self.dropout(self.log_sigma_projection(of_log_sigma))
        log_sigma = log_sigma + self.dropout(self.log_sigma_mlp(self.log_sigma_norm(log_sigma)))
        return DiagonalGaussian(mean, log_sigma.clamp(*LOG_SIGMA))
