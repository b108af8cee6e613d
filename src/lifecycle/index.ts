export {Backoff, type BackoffSettings, backoffDelayMs} from './backoff.ts';
export {type Clock, sleepUntilWall, systemClock} from './clock.ts';
export {ComponentGroup} from './component-group.ts';
export {type Labels, Metrics} from './metrics.ts';
export {type Gate, type GateState, Readiness} from './readiness.ts';
export {never, type Running} from './running.ts';
