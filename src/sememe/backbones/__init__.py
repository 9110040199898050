"""What stock networks and autoencoders need from us, whatever the system. Import the modules."""
