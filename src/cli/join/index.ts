export {bringToken} from './bring-token.ts';
export {joinFromIstio, leaveToIstio} from './from-istio.ts';
export {joinWith} from './join-with.ts';
