"""What an ablation shows: scores, their statistics, and the table, figures and TensorBoard pages made of them."""
