// A libnvidia-ml.so for tests. What each function returns is read from the file CONTROL at each call, one `name value`
// a line: a code of nvmlReturn_t, or for names in small letters a figure. Each call is appended to the file CALLS.
#include <stdio.h>
#include <string.h>

typedef void *device;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, sub; char busid[32]; } pci_info;
typedef struct { unsigned gpu, memory; } rates;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } process;

static long value(const char *name, long otherwise) {
    FILE *f = fopen(CONTROL, "r");
    char key[64];
    long n, found = otherwise;
    while (f && fscanf(f, "%63s %ld", key, &n) == 2)
        if (!strcmp(key, name)) found = n;
    if (f) fclose(f);
    return found;
}

static int called(const char *name) {
    FILE *f = fopen(CALLS, "a");
    if (f) { fprintf(f, "%s\n", name); fclose(f); }
    return (int)value(name, 0);
}

#define CALL(name) int code = called(name); if (code) return code

int nvmlInit_v2(void) { CALL("Init"); return 0; }
int nvmlShutdown(void) { return called("Shutdown"); }
int nvmlSystemGetDriverVersion(char *out, unsigned n) { snprintf(out, n, "550.1"); return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { CALL("Count"); *n = value("gpus", 1); return 0; }
// A device is its number plus one; an instance has a hundred more.
int nvmlDeviceGetHandleByIndex_v2(unsigned i, device *d) { CALL("Handle"); *d = (device)(long)(i + 1); return 0; }
int nvmlDeviceGetPciInfo_v3(device d, pci_info *p) {
    CALL("Pci");
    memset(p, 0, sizeof *p);
    p->bus = (unsigned)(long)d;
    return 0;
}
int nvmlDeviceGetName(device d, char *out, unsigned n) { CALL("Name"); snprintf(out, n, "Fake %ld", (long)d); return 0; }
int nvmlDeviceGetUtilizationRates(device d, rates *r) {
    CALL("Utilization");
    r->gpu = value("busy", 41);
    r->memory = 99;
    return 0;
}
int nvmlDeviceGetMemoryInfo_v2(device d, memory *m) {
    CALL("Memory");
    m->total = 8ull << 30;
    m->used = (unsigned long long)value("used", 3) << 30;
    m->free = m->total - m->used;
    return 0;
}
int nvmlDeviceGetPowerUsage(device d, unsigned *mw) { CALL("Power"); *mw = 123456; return 0; }
int nvmlDeviceGetTemperature(device d, int sensor, unsigned *c) { CALL("Temperature"); *c = 51; return 0; }
int nvmlDeviceGetTemperatureThreshold(device d, int which, unsigned *c) { CALL("Threshold"); *c = which ? 90 : 95; return 0; }
int nvmlDeviceGetClockInfo(device d, int which, unsigned *mhz) { CALL("Clock"); *mhz = 1980; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(device d, unsigned long long *r) {
    CALL("Throttle");
    *r = value("reasons", 1);
    return 0;
}
int nvmlDeviceGetMigMode(device d, unsigned *now, unsigned *next) {
    CALL("MigMode");
    *now = *next = value("mig", 0);
    return 0;
}
int nvmlDeviceGetMaxMigDeviceCount(device d, unsigned *n) { CALL("MigCount"); *n = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(device d, unsigned i, device *m) {
    CALL("MigHandle");
    if (i > 1) return 6;
    *m = (device)(100 + (long)d + i);
    return 0;
}
static int processes(unsigned *n, process *p, unsigned long long mib) {
    if (*n < 1) { *n = 1; return 7; }
    *n = 1;
    memset(p, 0, sizeof *p);
    p->pid = 4242;
    p->used = mib << 20;
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(device d, unsigned *n, process *p) { CALL("Compute"); return processes(n, p, 300); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(device d, unsigned *n, process *p) { CALL("Graphics"); return processes(n, p, 700); }
