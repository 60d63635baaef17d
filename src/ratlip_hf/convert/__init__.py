"""Between the original checkpoints of RATLIP and GALIP and this package's models.
Names of the original programs (netG, netD, netC) appear in this folder only."""
