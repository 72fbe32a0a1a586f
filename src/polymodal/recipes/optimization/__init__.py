"""How methods are optimised: gradients of several losses, and learning from what is better and what is worse."""
