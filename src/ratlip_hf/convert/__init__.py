"""Original checkpoints of RATLIP and GALIP, from and to; only here do names of the original programs (netG) appear."""
