"""Layers that many papers share: plain functions of their parameters."""
from minimoe.nn.layers import (
    AttentionParams, EmbeddingParams, LayerNormParams, LinearParams, LSTMOutput, LSTMParams,
    attention_init, causal_mask, dropout, embedding, embedding_init, layer_norm, layer_norm_init,
    linear, linear_init, lstm, lstm_init, masked, mlp, mlp_init, multi_head_attention,
    stacked_lstm)
from minimoe.nn.t5 import (
    FeedForwardParams, T5LayerKeep, T5LayerParams, T5Params, T5StackKeep, T5StackParams,
    bucket_starts, causal_relative_position_bias, relative_position_bias, relu_feed_forward,
    shift_right, t5, t5_decode, t5_encode, t5_init, t5_keep, t5_logits)

__all__ = [
    "AttentionParams", "EmbeddingParams", "FeedForwardParams", "LayerNormParams",
    "LinearParams", "LSTMOutput", "LSTMParams", "T5LayerKeep", "T5LayerParams", "T5Params",
    "T5StackKeep", "T5StackParams", "attention_init", "bucket_starts", "causal_mask",
    "causal_relative_position_bias", "dropout", "embedding", "embedding_init", "layer_norm",
    "layer_norm_init", "linear", "linear_init", "lstm", "lstm_init", "masked", "mlp",
    "mlp_init", "multi_head_attention", "relative_position_bias", "relu_feed_forward",
    "shift_right", "stacked_lstm", "t5", "t5_decode", "t5_encode", "t5_init", "t5_keep",
    "t5_logits"]
