export {bringToken} from './bring-token.ts';
export {joinWith} from './join-with.ts';
