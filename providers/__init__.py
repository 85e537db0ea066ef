"""What each upstream wants, one module per slug. No I/O."""
