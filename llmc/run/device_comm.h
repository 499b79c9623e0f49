/* device_comm.h: the device's memory as communication sees it: model/device.h for CommConfig.memory. */
#ifndef LLMC_DEVICE_COMM_H
#define LLMC_DEVICE_COMM_H
#include "comm/comm.h"

/* NULL where device memory is host memory. After device_open. */
const CommMemory *device_comm_memory(void);
#endif
