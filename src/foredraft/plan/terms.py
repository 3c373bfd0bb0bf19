"""What a user states beside the server: what training lies on, what device-hours cost, and the levels that the service must meet.

Refuses to know: what comes of it.
"""

from foredraft.records import Machine, Record, require


class Terms(Record, frozen=True):
    """`train_machine` None: training lies on the serving machine and its devices, else on `train_devices` of it; `answers`: a head costs
    the target's own answers too. `device_hour`, `train_device_hour`: prices in one currency. `ttft_s` and `tpot_s` (seconds, means at each
    load) and `rate` (requests per second): levels of service. None: not stated.
    """

    train_machine: Machine | None = None
    train_devices: int = 1
    answers: bool = True
    device_hour: float | None = None
    train_device_hour: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        require(self, positive=("train_devices", "device_hour", "train_device_hour", "ttft_s", "tpot_s", "rate"))
        if self.train_device_hour and not self.device_hour:
            raise ValueError("--train-device-hour: give --device-hour too, the price of serving")

    @property
    def train_weight(self) -> float:
        """A training device-hour in device-hours of serving, by their prices where they differ."""
        return self.train_device_hour / self.device_hour if self.train_device_hour and self.device_hour else 1.0
