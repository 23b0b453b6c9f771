"""The members of these directories wait for each other for long."""

from tests.swarm.dht.processes.conftest import patient_members as patient_members
