export {type Answer, type Health, type HealthDeps, type HealthStatus, startHealth, type TrafficGate} from './health.ts';
export type {Prober, ProbeStatus} from './prober.ts';
export {keepWord, type Word, type WordKeeper} from './word.ts';
